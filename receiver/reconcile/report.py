"""What a pass of the reconciler did."""

from dataclasses import asdict, dataclass, field


@dataclass(slots=True)
class Report:
    """What a pass did.

    asked -- polls; ended -- those that reported an ending. found -- jobs nobody had reported.
    errors, queued, redelivered, results -- records, deliveries, files. unsaved -- results that
    cannot be had, and why. failed -- jobs the vendor failed for, and why. unfinished -- instances
    left out or not finished, and why. unasked -- those that have jobs to ask for and nothing to ask
    with. unclear -- submissions of unknown fate.
    """

    asked: int = 0
    ended: int = 0
    found: int = 0
    errors: int = 0
    queued: int = 0
    redelivered: int = 0
    results: int = 0
    unsaved: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    unfinished: list[dict[str, str]] = field(default_factory=list)
    unasked: list[dict[str, str]] = field(default_factory=list)
    unclear: list[dict[str, object]] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Add what was done for another instance."""
        for name, done in asdict(other).items():
            setattr(self, name, getattr(self, name) + done)

    @property
    def blocked(self) -> list[str]:
        """The names of the instances left out or not finished."""
        return [one["instance"] for one in self.unfinished]
