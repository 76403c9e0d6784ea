"""HomeProcess: the process that an object belongs to. A fork copies its memory, and none of the threads, the processes
and the connections behind it."""

import os

from ..errors import WrongProcess


class HomeProcess:
    """This process. what: the object, for messages."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._id = os.getpid()

    @property
    def is_here(self) -> bool:
        return os.getpid() == self._id

    def check(self) -> None:
        """Raises WrongProcess in a child that was forked."""
        if not self.is_here:
            raise WrongProcess(
                f"this {self._what} belongs to process {self._id}, from which this one was forked; make one in each "
                'child, and start children with multiprocessing.get_context("spawn")'
            )
