"""Which files the argument IMAGES names, in which order, and what is known of each.

IMAGES is a folder (recursive), a glob, a text list of paths, an MVTec-style category folder
(`train/good`, `test/<defect>`, `ground_truth`) or one image file. Only names are read here;
whether a file holds an image is decoding's business.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import zip_longest
from pathlib import Path
from typing import Final

from vadexport.errors import InputError

#: Suffixes, in any case, of the files that count as images.
IMAGE_SUFFIXES: Final = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"),
    *(".dcm", ".dicom"),
)
_LIST_SUFFIXES: Final = (".txt", ".lst")

#: Name of the folder of normal images in MVTec AD and the data sets laid out like it.
_NORMAL_FOLDER: Final = "good"
#: Name of the folder of a category's images to test with.
TEST_FOLDER: Final = "test"
#: Name of the folder of defect masks: PNG files that are no camera images.
MASK_FOLDER: Final = "ground_truth"

_LABELS: Final = {
    **dict.fromkeys(("normal", "good", "0"), False),
    **dict.fromkeys(("anomalous", "defect", "1"), True),
}

_WILDCARD: Final = re.compile(r"[*?[]")
_TEXT_AND_NUMBER: Final = re.compile(r"([^0-9]*)([0-9]*)")


@dataclass(frozen=True)
class ImageFile:
    """One image file that IMAGES names.

    Attributes:
        path: where it is.
        name: what reports call it: the path below the given folder (for a glob, below the
            folder before the first wildcard), with forward slashes; for a text list, as written.
        label: True anomalous, False normal, None unknown.
    """

    path: Path
    name: str
    label: bool | None


def list_images(spec: str | Path) -> list[ImageFile]:
    """Resolve IMAGES into image files, in natural order of their names (`2.png`, `10.png`).

    Hidden files and folders, and folders named `ground_truth`, are left out unless `spec` itself
    leads into them. Links are followed; a folder that several links lead to is listed once, under
    its real name if that lies below the given folder.

    A folder's images are labelled when a folder named `good` is among those they lie in, the
    given one included: images in it are normal, all others anomalous.

    Args:
        spec: folder, glob, text list (`.txt`, `.lst`), MVTec-style category folder or image.

    Raises:
        InputError: the path is missing or not readable, there is no image, or a line of a text
            list names a missing file, an unknown label, or a file that an earlier line named.
    """
    return _resolve(spec, ("train", "test"))


def training_images(spec: str | Path) -> list[ImageFile]:
    """Like `list_images`, but only what a detector may be fitted or calibrated on.

    That is `train/good` of an MVTec-style category, else every image not labelled anomalous.

    Raises:
        InputError: as `list_images`; a category without `train/good`; all images are anomalous.
    """
    files = _resolve(spec, ("train/good",))
    normal = [file for file in files if file.label is not True]
    if not normal:
        raise InputError(f"all {len(files)} images of {spec} are anomalous: give normal ones")
    return normal


def test_images(spec: str | Path) -> list[ImageFile]:
    """Like `list_images`, but of an MVTec-style category only the images under `test`.

    Raises:
        InputError: as `list_images`; a category without `test`.
    """
    return _resolve(spec, ("test",))


def is_category(root: Path) -> bool:
    """Whether a folder is laid out like a category of MVTec AD, even without `train/good`.

    Raises:
        InputError: the folder cannot be read.
    """
    with _readable():
        if (root / "train" / _NORMAL_FOLDER).is_dir():
            return True
        return (root / "test").is_dir() and bool(_scan(root / "test")[1])


def _resolve(spec: str | Path, category_parts: Sequence[str]) -> list[ImageFile]:
    """List `spec`; if it is a category folder, only these folders of it."""
    if not str(spec):
        raise InputError("IMAGES is empty: give a folder, a glob, a text list or an image")
    path = Path(spec)
    with _readable():
        if path.is_dir():
            files = _category(path, category_parts) if is_category(path) else _folder(path)
        elif path.is_file():
            files = _file(path)
        elif path.exists():
            raise InputError(f"{path} is neither a folder nor a file")
        elif _WILDCARD.search(str(path)):
            files = _glob(path)
        else:
            raise InputError(f"no such file or folder: {path}")
    return sorted(files, key=lambda file: _natural(file.name))


@contextmanager
def _readable() -> Iterator[None]:
    """Turn what the file system refuses into a user's error."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from None


def _natural(name: str) -> tuple[list[tuple[str, int, str]], str]:
    """Sort key under which numbers in names count as numbers; the plain name breaks ties.

    Digits are compared as text, shorter first: `int` refuses very long ones.
    """
    parts = [(text, digits.lstrip("0")) for text, digits in _TEXT_AND_NUMBER.findall(name)]
    return [(text, len(digits), digits) for text, digits in parts], name


# --- folders ---------------------------------------------------------------------------------


def _category(root: Path, parts: Sequence[str]) -> list[ImageFile]:
    folders = [root / part for part in parts if (root / part).is_dir()]
    if not folders:
        # `parts` is one folder here: every category has `train/good` or `test`.
        raise InputError(f"{root} has no folder {parts[0]}: give the folder of images itself")
    found = [path for folder in folders for _, files in _walk(folder) for path in files]
    return [
        ImageFile(path, _name(path, root), label=not _is_normal(path, root))
        for path in _images_among(found, " and ".join(map(str, folders)))
    ]


def _folder(root: Path) -> list[ImageFile]:
    found = [path for _, files in _walk(root) for path in files]
    return _labelled(_images_among(found, str(root)), root)


def _labelled(paths: Iterable[Path], root: Path) -> list[ImageFile]:
    """Name and label images below `root`; no folder named `good`, no labels."""
    # "." and ".." have a name only once resolved; any other name is kept though it be a link.
    root_name = root.name if root.name not in ("", "..") else root.resolve().name
    normal = {path: root_name == _NORMAL_FOLDER or _is_normal(path, root) for path in paths}
    labelled = any(normal.values())
    return [
        ImageFile(path, _name(path, root), label=not is_normal if labelled else None)
        for path, is_normal in normal.items()
    ]


def _is_normal(path: Path, root: Path) -> bool:
    return _NORMAL_FOLDER in path.relative_to(root).parent.parts


def _name(path: Path, root: Path) -> str:
    # A file name may hold bytes that are no text; reports must be able to write it all the same.
    name = path.relative_to(root).as_posix()
    return name.encode(errors="backslashreplace").decode()


def _images_among(paths: Sequence[Path], where: str) -> list[Path]:
    images = [path for path in paths if _is_image_name(path)]
    if images:
        return images
    if paths:
        raise InputError(f"{where}: {len(paths)} files, none of them an image ({_suffixes()})")
    raise InputError(f"{where}: no files there; images are {_suffixes()}")


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _suffixes() -> str:
    return " ".join(IMAGE_SUFFIXES)


def _walk(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder from `root` down, with the files right in it.

    Linked folders come after all others, and none is entered twice: links that lead in a circle,
    or many that lead to one another, end the walk instead of multiplying it.
    """
    pending, linked = deque([root]), deque[Path]()
    entered: set[tuple[int, int]] = set()
    while pending or linked:
        folder = pending.popleft() if pending else linked.popleft()
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in entered:
            continue
        entered.add(identity)
        files, folders = _scan(folder)
        yield folder, files
        for child in folders:
            (linked if child.is_symlink() else pending).append(child)


def _scan(folder: Path) -> tuple[list[Path], list[Path]]:
    """The visible files and folders right in `folder`, sorted, without folders of masks.

    A link that leads nowhere counts as a file, so that decoding names it instead of it being
    passed over in silence.
    """
    children = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    folders = [child for child in children if child.is_dir()]
    files = sorted(set(children).difference(folders))
    return files, [child for child in folders if child.name != MASK_FOLDER]


# --- globs -----------------------------------------------------------------------------------


def _glob(pattern: Path) -> list[ImageFile]:
    """Files that match; unlike the standard library's glob, `**` survives links in a circle."""
    first = next(i for i, part in enumerate(pattern.parts) if _WILDCARD.search(part))
    root = Path(*pattern.parts[:first])
    if not root.is_dir():
        raise InputError(f"nothing matches {pattern}: there is no folder {root}")
    # `**/**` means no more than `**`, but would walk anew from every folder.
    parts = pattern.parts[first:]
    parts = tuple(p for p, after in zip_longest(parts, parts[1:]) if (p, after) != ("**", "**"))
    # With several `**`, a file can be reached in several ways.
    found = list(dict.fromkeys(_matches(root, parts)))
    if not found:
        raise InputError(f"no file matches {pattern}")
    return _labelled(_images_among(found, str(pattern)), root)


def _matches(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    head, rest = parts[0], parts[1:]
    if head == "**":
        for below, files in _walk(folder):
            yield from _matches(below, rest) if rest else files
        return
    if _WILDCARD.search(head):
        files, folders = _scan(folder)
        children = [child for child in (folders if rest else files) if fnmatch(child.name, head)]
    else:
        child = folder / head
        children = [child] if (child.is_dir() if rest else child.is_file()) else []
    for child in children:
        if rest:
            yield from _matches(child, rest)
        else:
            yield child


# --- files -----------------------------------------------------------------------------------


def _file(path: Path) -> list[ImageFile]:
    if path.suffix.lower() in _LIST_SUFFIXES:
        return _text_list(path)
    if not _is_image_name(path):
        lists = " ".join(_LIST_SUFFIXES)
        raise InputError(f"{path} is neither an image ({_suffixes()}) nor a list ({lists})")
    return _labelled([path], path.parent)


def _text_list(path: Path) -> list[ImageFile]:
    try:
        # The byte order mark that Windows editors write is not part of the first path.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a list of images: it is not UTF-8 text") from None
    files: dict[Path, ImageFile] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        try:
            file = _list_entry(entry, path.parent)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        # An image that counts twice would weigh twice in every figure.
        if file.path in files:
            raise InputError(f"{path}, line {number}: {file.name} is listed twice")
        files[file.path] = file
    if not files:
        raise InputError(f"{path} lists no images: write one path a line")
    return list(files.values())


def _list_entry(entry: str, folder: Path) -> ImageFile:
    """Read `path` or `path TAB label`."""
    name, _, label = (part.strip() for part in entry.partition("\t"))
    if label and label not in _LABELS:
        raise InputError(f"label {label!r} is none of {', '.join(_LABELS)}")
    path = folder / name
    with _readable():
        if path.is_dir():
            raise InputError(f"{name} is a folder: write one image a line")
        if not path.is_file():
            raise InputError(f"no such file: {name}")
    if not _is_image_name(path):
        raise InputError(f"{name} is not an image ({_suffixes()})")
    return ImageFile(path, name, _LABELS.get(label))
