"""The operators change what decides, one thing at a time, and nothing else."""

from mutants.operators import mutants

SOURCE = '''
def take(self, count: int = 0) -> bool:
    """Takes 1."""
    if not self.free:
        return False
    self.free -= count
    self.note(count)
    return self.free < 3 and count is None

def check_integrity(self) -> None:
    if self.free < 0:
        raise RuntimeError(1 + 1)
'''


def test_each_change_is_made_once_and_alone() -> None:
    found = mutants(SOURCE)
    assert sorted(mutant.change for mutant in found) == sorted(
        [
            "0 becomes 1",
            "not goes",
            "False becomes True",
            "Sub becomes Add",
            "self.note(count) goes",
            "And becomes Or",
            "Lt becomes LtE",
            "3 becomes 4",
            "Is becomes IsNot",
        ]
    )
    assert len({mutant.source for mutant in found}) == len(found)
