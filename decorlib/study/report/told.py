"""What a run says: how far it is, and of a few notebooks their tables and a line for each verdict."""

from decorlib.study.evidence.records import Record

MAX_ROWS = 60  # of a table in a terminal; the whole is in the record
#: Seconds at the records' pace, counted with those of this run: a short notebook is mostly its start, and says little.
ASSUMED = 60.0


def tables_and_verdicts(record: Record) -> str:
    """The tables of a record as text, then one line for each verdict."""
    parts = []
    for name in record.tables:
        frame = record.frame(name)
        parts.append(f"{record.notebook}  {name}")
        parts.append(frame.head(MAX_ROWS).to_string(index=False, na_rep="-", float_format=lambda x: f"{x:.6g}"))
        if len(frame) > MAX_ROWS:
            parts.append(f"({len(frame) - MAX_ROWS} more rows in the record)")
        parts.append("")
    for verdict in record.verdicts:
        claim = f" ({verdict['claim']})" if "claim" in verdict else ""
        parts.append(f"{record.notebook}  VERDICT {verdict['hypothesis']}: {verdict['outcome']}{claim}")
    return "\n".join(parts)


class TimeLeft:
    """How far a run of several notebooks is: those that are done, and the seconds that the others took last time.

    Args:
        numbers: of the notebooks, in order.
        records: those of the last time, by number; a notebook without one is not counted in the time.
    """

    def __init__(self, numbers: list[str], records: dict[str, Record]):
        self.numbers = numbers
        self.took = {number: record.made_by["seconds"] for number, record in records.items()}
        self.done: list[str] = []
        self.spent = self.expected = ASSUMED

    def after(self, number: str, seconds: float, ran: bool) -> str:
        """The words for the end of a line about a notebook; empty for the last."""
        self.done.append(number)
        if ran and number in self.took:
            self.spent, self.expected = self.spent + seconds, self.expected + self.took[number]
        left = [other for other in self.numbers if other not in self.done]
        if not left:
            return ""
        pace = self.spent / self.expected  # this machine beside the one of the records
        seconds = pace * sum(self.took.get(other, 0.0) for other in left)
        return f" ({len(self.done)} of {len(self.numbers)}; at most about {duration(seconds)} left)"


def duration(seconds: float) -> str:
    """Rounded to what one plans with: seconds below two minutes, else minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
