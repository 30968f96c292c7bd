"""The prose of this repository at one commit: its documents, and the comments that document the reference."""

import re
import subprocess

PAGES = ["README.md", "docs/model.md", "docs/judge.md", "docs/kernels.md", "docs/gpu.md", "docs/headline.md",
         "emulator/README.md", "optimized/README.md", "golden/RUNNER.md", "reference/PAPER.md", "reference/BEHAVIOUR.md"]


def git(*arguments):
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def without_markup(text):
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\[`?([^\]`]*)`?\]", r"\1", text)
    return re.sub(r"[`*]", "", text)


def paragraphs(lines):
    """Lines joined to paragraphs; tables, headings and code are left out."""
    fenced, gathered = False, []
    for line in lines:
        line = line.strip()
        if line.startswith("```"):
            fenced = not fenced
            line = ""
        if fenced or not line or line.startswith(("|", "#", "<", "$")):
            if gathered:
                yield " ".join(gathered)
            gathered = []
            continue
        if line.startswith(("* ", "- ")) and gathered:
            yield " ".join(gathered)
            gathered = []
        gathered.append(line.removeprefix("* ").removeprefix("- "))
    if gathered:
        yield " ".join(gathered)


def prose(paragraph):
    """The sentences of a paragraph that are prose: no formulas, no lists of names."""
    sentences = re.split(r"(?<=[.!?:])\s+(?=[A-Z])", without_markup(paragraph))

    def plain(sentence):
        letters = sum(character.isalpha() or character == " " for character in sentence)
        return (re.fullmatch(r"[A-Z][ -~]*[.!?:]", sentence) and letters > 0.88 * len(sentence)
                and 20 < len(sentence) < 300 and "::" not in sentence and "/" not in sentence)

    return " ".join(sentence for sentence in sentences if plain(sentence))


def texts(commit):
    """Paragraphs of prose, without repetitions, in a fixed order."""
    found = []
    for page in PAGES:
        found += paragraphs(git("show", f"{commit}:{page}").splitlines())
    for path in sorted(git("ls-tree", "-r", "--name-only", commit, "reference/src", "metrics/src", "emulator/src").split()):
        lines = git("show", f"{commit}:{path}").splitlines()
        comments = [re.sub(r"^\s*//[/!] ?", "", line) if re.match(r"^\s*//[/!]", line) else "" for line in lines]
        found += paragraphs(comments)
    return list(dict.fromkeys(text for text in map(prose, found) if text))


if __name__ == "__main__":
    for text in texts("HEAD"):
        print(text)
