"""FiledIdentities: identities of a file, read again when it has changed. Each token has a caller of its own, whose
tenant a call cannot choose.
"""

import logging

from ..errors import PermissionDenied, Unauthenticated
from .caller import Caller
from .identities import hash_of_given
from .identities_file import FileContent, IdentitiesFile

logger = logging.getLogger(__name__)


class FiledIdentities:
    def __init__(self, file: IdentitiesFile) -> None:
        """Raises OSError, ValueError."""
        self._file = file
        self._content = file.read()

    @property
    def shared_prompts(self) -> tuple[str, ...]:
        return self._content.shared_prompts

    def of(self, token: str | None, claimed_tenant: str = "") -> Caller:
        caller = self._content.callers.get(hash_of_given(token))  # its time depends on a hash, which nobody can aim
        if caller is None:
            raise Unauthenticated("the token is not known")
        if claimed_tenant and claimed_tenant != caller.tenant.name:
            raise PermissionDenied("the token is another tenant's than the one that the call names")
        return caller

    def refresh(self) -> bool:
        """Calls that have begun go on as they are. A file with a mistake changes nothing."""
        if not self._file.has_changed():
            return False
        content = self._read()
        if content is None or content == self._content:
            return False
        self._content = content
        logger.info("the identities have changed: %d tokens", len(content.callers))
        return True

    def _read(self) -> FileContent | None:
        try:
            return self._file.read()
        except (OSError, ValueError) as error:
            logger.error("the identities stay as they were, since their file cannot be used: %s", error)
            return None
