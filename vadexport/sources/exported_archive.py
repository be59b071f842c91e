"""See what loading a `.pt2` archive would run, before anything of it is loaded.

`torch.export.load` unpickles what an archive marks as pickled and its sample inputs, evaluates the
sizes in it as Python expressions (`sympy.sympify`), calls whatever function of `torch` a node
names, and loads compiled libraries. None of that is needed for a program of tensors and operators,
so an archive with more than that is refused.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from vadexport.errors import InputError
from vadexport.sources.checking import reason

#: Files of an archive with one program named `model`, its weights and constants tensors only.
_PLAIN_FILES: Final = re.compile(
    r"(\.data/)?(archive_format|archive_version|version|byteorder|serialization_id)"
    r"|models/model\.json|data/sample_inputs/model\.pt|extra/.*"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_COMPILED: Final = "data/aotinductor/"
_FORMAT: Final = "pt2"

#: Operators, and the functions of sizes that exporters write.
_OPERATOR: Final = re.compile(
    r"torch\.ops\.(aten|prims?|torchvision|quantized|quantized_decomposed|higher_order)(\.\w+)+"
    r"|torch\.sym_(int|float|max|min|not|sqrt|ite|sum)|math\.(ceil|floor|trunc|sqrt|log2)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|getitem|and_|or_)"
)
#: Operators of PyTorch's own that reach files.
_REACHES_FILES: Final = re.compile(r"\.(from_file|save|load)\b")
#: Operators that bear Python's names of `&`, `|` and so on.
_LOGIC: Final = re.compile(r"\.__i?(and|or|xor|lshift|rshift)__\b")
#: Names and signs of an expression of sizes; no text, no attribute, nothing with an underscore.
_SIZE_TOKEN: Final = re.compile(r"\s+|[A-Za-z]\w*|\d+(\.\d+)?|[-+*/%(),<>=&|~]")
_SIZE_NAME: Final = re.compile(
    r"[suz]\d+|u\d+|Max|Min|Abs|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Pow|FloorDiv|ModularIndexing|Where"
    r"|PythonMod|Mod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural|FloatPow"
    r"|FloatTrueDiv|IntTrueDiv|TruncToFloat|TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity"
    r"|Add|Mul|Integer|Rational|GreaterThan|LessThan|StrictGreaterThan|StrictLessThan"
    r"|Equality|Unequality|True|False|true|false|oo|int_oo|floor|ceiling"
)
_SYMBOL: Final = re.compile(r"Symbol\('[suz]\d+'(, (positive|nonnegative|integer)=(True|False))*\)")
_LONGEST_SIZE: Final = 2000
#: Containers that a program may take and return.
_CONTAINERS: Final = (
    *("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"),
    *("collections.namedtuple", "torch.fx.immutable_collections.immutable_list"),
    "torch.fx.immutable_collections.immutable_dict",
)


def check_archive(path: Path) -> None:
    """Look through an archive with PyTorch's own reader.

    Raises:
        InputError: it holds compiled code, is of another PyTorch's format, is damaged, or would run
            code that it brings.
    """
    found = _Archive(path)
    if any(name.startswith(_COMPILED) for name in found.names):
        raise InputError(
            f"{path} is compiled by AOTInductor and holds no graph: save the program itself with "
            "torch.export.save"
        )
    if "models/model.json" not in found.names:
        raise InputError(
            f"{path} holds no program as PyTorch 2.8 and newer save it: write it again with "
            "torch.export.save"
        )
    try:
        carried = next(_carried(found), None)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, RecursionError) as error:
        raise _damaged(path, error) from None
    if carried is not None:
        raise InputError(
            f"{path} would run code when it is loaded ({carried}): refused; --trust-pickle loads "
            "it, if you trust where it comes from"
        )


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is truncated or damaged: {reason(error)}")


class _Archive:
    """Files of an archive by name.

    PyTorch's own reader reads them: two readers of one ZIP file could be made to see different
    files.
    """

    def __init__(self, path: Path) -> None:
        from torch.export.pt2_archive._package import PT2ArchiveReader

        try:
            self._reader = PT2ArchiveReader(str(path))
            self.names = list(self._reader.get_file_names())
        except (RuntimeError, OSError, AssertionError) as error:
            raise _damaged(path, error) from None

    def read(self, name: str) -> bytes:
        data: bytes = self._reader.read_bytes(name)
        return data

    def json(self, name: str) -> Any:
        return json.loads(self.read(name))


def _carried(archive: _Archive) -> Iterator[str]:
    """What would run code, each in words."""
    for name in archive.names:
        if not _PLAIN_FILES.fullmatch(name):
            yield f"file {name}"
    for name in (
        "data/weights/model_weights_config.json",
        "data/constants/model_constants_config.json",
    ):
        for key, value in archive.json(name)["config"].items():
            if value["use_pickle"]:
                yield f"{key} is pickled"
    sample = archive.read("data/sample_inputs/model.pt")
    if sample and not _is_tensors_only(sample):
        yield "pickled sample inputs"
    yield from _carried_by_program(archive.json("models/model.json"))


def _is_tensors_only(data: bytes) -> bool:
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - whatever a pickle that is none of tensors raises
        return False
    return True


def _carried_by_program(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _carried_by_program(each)
    if not isinstance(value, dict):
        return
    for key, each in value.items():
        if key in ("target", "as_operator") and not _is_operator(each):
            yield f"operator {each!r}"
        elif key == "expr_str" and not _is_size(each):
            yield f"size {each!r}"
        elif key == "range_constraints":
            yield from (f"size {name!r}" for name in each if not _is_size(name))
        elif key in ("in_spec", "out_spec") and each and not _is_plain_spec(json.loads(each)):
            yield f"structure {each!r}"
        yield from _carried_by_program(each)


def _is_operator(value: Any) -> bool:
    return (
        isinstance(value, str)
        and _OPERATOR.fullmatch(value) is not None
        and "__" not in _LOGIC.sub("", value)
        and not _REACHES_FILES.search(value)
    )


def _is_size(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > _LONGEST_SIZE:
        return False
    value = _SYMBOL.sub("s0", value)
    position = 0
    while position < len(value):
        token = _SIZE_TOKEN.match(value, position)
        if token is None:
            return False
        word = token.group()
        if word[0].isalpha() and not _SIZE_NAME.fullmatch(word):
            return False
        position = token.end()
    return True


def _is_plain_spec(value: Any) -> bool:
    """Whether a tree's description names the containers that need no import."""
    if isinstance(value, list):
        return all(map(_is_plain_spec, value))
    if isinstance(value, dict):
        kind = value.get("type")
        known = kind is None or kind in _CONTAINERS
        return known and all(map(_is_plain_spec, value.get("children_spec", [])))
    return True
