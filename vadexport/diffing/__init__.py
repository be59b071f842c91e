"""`vadexport diff`: what changed from one artifact, or report, to another."""

from vadexport.diffing.comparing import diff, diff_folders
from vadexport.diffing.result import Change, ChangedImage, Diff, FolderDiff

__all__ = ["Change", "ChangedImage", "Diff", "FolderDiff", "diff", "diff_folders"]
