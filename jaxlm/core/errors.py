# SPDX-License-Identifier: Apache-2.0
"""Errors that are a person's to mend, and the exit codes they end in.

A `UserError` is one line: what was wrong, the value received, what is allowed, what to do next.
The command line prints it without a traceback and exits with `exit_code`.  Everything else that
is raised is a bug, and keeps its traceback.
"""

import errno


class UserError(Exception):
    """A mistake in what the user gave; the message is the whole report."""

    exit_code = 2


class ConfigError(UserError, ValueError):
    """A configuration value that is unknown, of the wrong type, out of range or contradictory."""


class UnanswerableError(ConfigError):
    """A question that compute was spent on and that ends the same however often it is asked."""


class DataError(UserError):
    """Source text or a prepared corpus that cannot be used."""


class TokenizerError(UserError):
    """A tokenizer that is missing, damaged, or not the one the data was made with."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another model."""


class RunError(UserError):
    """A run directory that cannot be used as asked."""


class PeerError(UserError):
    """Another process of the same run has gone, so that this one cannot go on."""

    exit_code = 75  # the same command again goes on from the last checkpoint


class NonFiniteError(UserError):
    """The loss or the gradient stopped being finite; the refused update never touched the state."""

    exit_code = 3


def way_out(error: OSError) -> str:
    """What a person can do about a path that cannot be used."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return "make room"
        case errno.EACCES | errno.EPERM:
            return "change its permissions, or choose another folder"
        case errno.EROFS:
            return "choose a folder on a disk that can be written"
        case errno.EEXIST | errno.ENOTDIR:
            return "a file stands where a folder should be: choose another folder"
        case errno.ENOENT:
            return "make its folder first, or choose another one"
        case errno.ENAMETOOLONG:
            return "choose a shorter name"
        case errno.EISDIR:
            return "a folder stands where the file should be: move it away"
    return "see to the disk"
