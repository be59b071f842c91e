"""`vadexport verify`: hold artifacts against the untouched reference."""

from vadexport.verifying.options import VerifyOptions, VerifyResult
from vadexport.verifying.pipeline import verify

__all__ = ["VerifyOptions", "VerifyResult", "verify"]
