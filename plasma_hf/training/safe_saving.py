"""What a `Trainer` of this package writes: safetensors and JSON, no pickle beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME


class SafeSaving(Trainer):
    """Save the model without `training_args.bin`, and upload nothing.

    Folders of a checkpoint have three files of `torch.save` besides, to go on with a run that was
    stopped: `optimizer.pt`, `scheduler.pt` and `rng_state.pth` (in several processes one each).
    `Trainer` reads them with `torch.load(weights_only=True)`, only to resume, and only from the
    folder that it is told. No export takes them along.
    """

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # Nothing reads this pickle of the arguments; what they were is in the card of the run.
        Path(output_dir or str(self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def init_hf_repo(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: uploads of `Trainer` take checkpoints and pickles along."""
        raise ValueError(
            "push_to_hub=True would upload pickles of the run with the model; leave it out, and "
            "after training type plasma_hf.push(model, processor, '<org>/<name>')."
        )

    def push_to_hub(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse, as `init_hf_repo` does."""
        self.init_hf_repo()
