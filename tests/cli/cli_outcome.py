"""How a command of the tests ended."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def refused(self, *fragments: str, code: int = 2) -> None:
        """It ended with one line of error that holds the fragments, and nothing on stdout."""
        assert self.code == code, (self.code, self.err)
        lines = [line for line in self.err.splitlines() if line.startswith("sinkscope: error: ")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0]
        assert "Traceback" not in self.err
        assert self.out == ""
        for fragment in fragments:
            assert fragment in lines[0], lines[0]
