"""A user hands RKSPCallback to a Trainer-like class (as SetFit has one), which gives callbacks an object of its own: the model is
an attribute of it, and it is no torch module.

What happens afterwards: an error of the package says what it was given and what it needs, or a warning, and the run goes on.
"""

from common import *


class Wrapped:
    def __init__(self):
        self.model_body = llama()


def main(expect):
    def go():
        folder, callback = tempfile.mkdtemp(), watcher()
        args = TrainingArguments(output_dir=folder, report_to=[], use_cpu=True, max_steps=2)
        state, control = transformers.TrainerState(max_steps=2), transformers.TrainerControl()
        model = Wrapped()
        callback.on_train_begin(args, state, control, model=model)
        for step in range(2):
            callback.on_step_begin(args, state, control, model=model)
            model.model_body(**default_data_collator([text_row()(i) for i in range(8)])).loss.backward()
            state.global_step = step + 1
            callback.on_step_end(args, state, control, model=model)
        callback.on_train_end(args, state, control, model=model)

    seen = attempt(go)
    expect(
        (seen.ran and seen.warned()) or (seen.refused and re.search("Wrapped|nn.Module|module", seen.text)),
        f"{seen}, said {seen.said}",
    )


run("J", main)
