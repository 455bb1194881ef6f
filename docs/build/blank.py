"""A copy of flowclip.py with one chapter to be written by you: python docs/build/blank.py ATTN

Signatures and docstrings of the chapter stay, its bodies are emptied; all else is as it was. Write
it to a file of yours: python docs/build/blank.py ATTN > mine.py. Several may be named: TRAIN SAMPLE
empties chapters 1 and 2, and the training step of train.py is there, too, for you to write.
"""

import ast
import sys

from statements import CODE, read_sections, read_statements

STEP = '''

# The trainer of train.py, and its step (docs/1-objective.md) to be written by you.
import train  # noqa: E402
from train import Batches, Config, load_data, seeded  # noqa: E402, F401


class TextConditionalTrainer(train.TextConditionalTrainer):
    def train_step(self, images, captions):
        """One step of AdamW and of the average, on x0 [B, C, H, W] and B captions -> the loss.

        There are self.model, ema_model, optimizer, device, step (0, 1, ...), seed, lr, warmup,
        cooldown, total_steps, ema, text_drop_prob, autocast (around the model's call);
        self.context_of(captions) -> Z, mask; self.start_at_mean(images);
        seeded(device, seed, step, 1), a generator.
        """
        raise NotImplementedError
'''


def chapter_of(part):
    """ATTN, or ATTN-3 -> the chapter that has such statements."""
    for name, chapter in read_statements().items():
        if name.split("-")[0] == part.split("-")[0]:
            return chapter
    raise SystemExit(f"error: no chapter has a statement {part}; try one of docs/README.md")


def functions(tree):
    """The functions of a module and the methods of its classes, but none inside of another."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node)


def blank(*parts):
    code = CODE["flowclip.py"]
    lines, sections = code.splitlines(), read_sections()
    emptied = {line for part in parts for line in sections[chapter_of(part)]}
    for function in reversed(list(functions(ast.parse(code)))):
        if function.lineno in emptied:
            begin = function.body[0].lineno - 1
            if ast.get_docstring(function):
                begin = function.body[0].end_lineno
            indent = " " * function.body[0].col_offset
            lines[begin : function.end_lineno] = [f"{indent}raise NotImplementedError"]
    step = STEP if any(part.startswith("TRAIN") for part in parts) else ""
    return "\n".join(lines) + "\n" + step


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__.splitlines()[0])
    print(blank(*sys.argv[1:]), end="")
