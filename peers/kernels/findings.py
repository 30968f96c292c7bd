"""What was found wrong in somebody's kernel. Each was looked at twice, and has a reproduction of its own in findings/."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """`says`: a regular expression that what the test reports must match. `text`: for the page. `reproduce`: a file of findings/."""

    says: str
    text: str
    reproduce: str = ""


FINDINGS: dict[str, Finding] = {}
