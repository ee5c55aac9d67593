"""What the model of a host's inference loop brings along: its probe, what it asks of the chip, which one it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clone_rl.errors import BadValueError, CloneRLError, UnsupportedModelError
from clone_rl.hw_emulator.workload import Workload
from clone_rl.llm.model import LanguageModel, load_model
from clone_rl.llm.model_files import PROBE, ModelFiles
from clone_rl.llm.probe import Probe, load_probe
from clone_rl.llm.stepper import Stepper


@dataclass(frozen=True)
class HostModel:
    """A model that a controller is attached to.

    Attributes:
        name: For errors.
        stepper: The model, ready to be run layer by layer.
        probe: Its exit probe, or None.
        shape: What the emulator charges.
        sha256: Hash of its weights and probe; empty where its files are not known.
        tokenizer: Its tokenizer, or None where it is not known.
    """

    name: str
    stepper: Stepper
    probe: Probe | None
    shape: Workload
    sha256: str
    tokenizer: Any = None

    @classmethod
    def of(
        cls,
        model: Any,
        probe: Probe | Path | str | bool | None = None,
        workload: Workload | None = None,
        precision: str = "",
    ) -> HostModel:
        """Find out what there is to know about a model.

        Args:
            model: A ``transformers`` causal language model, a ``LanguageModel``, or what ``load_model`` takes.
            probe: An exit probe or its file; None takes the one beside the model's weights, if there is one; False takes none.
            workload: Its shape, where its configuration does not tell (a mixture of experts, a family that is not known).
            precision: One of ``clone_rl.hw_emulator.precision.PRECISIONS``, what the emulator charges a model of
                ``transformers`` at; empty for the emulator's default. A ``LanguageModel`` has its own.

        Raises:
            UnsupportedModelError: Its layers cannot be run one by one, or its shape is not known.
            BadFileError, UnknownNameError: A file or a name is wrong.
            BadValueError: The probe is of a model of another size.
        """
        if isinstance(model, str | Path):
            model = load_model(str(model), precision)
        stepper = Stepper(model)
        if isinstance(model, LanguageModel):
            own = cls(model.name, stepper, model.probe, workload or model.shape, model.sha256, model.tokenizer)
        else:
            own = _plain(stepper, workload, precision)
        if probe is None:
            return own
        if not probe:
            return replace(own, probe=None)
        exits, width = own.shape.layers - 1, own.shape.hidden_size
        found = probe if isinstance(probe, Probe) else load_probe(Path(str(probe)), exits, width)
        if (found.exits, found.width) != (exits, width):
            raise BadValueError(
                f"a probe of {found.exits} exits of width {found.width} for {own.name}", f"it has {exits} of width {width}"
            )
        return replace(own, probe=found)


def _plain(stepper: Stepper, workload: Workload | None, precision: str) -> HostModel:
    """A model of ``transformers``, and what lies beside its weights if they came from a folder."""
    config = stepper.model.config
    name = str(getattr(config, "name_or_path", "") or type(stepper.model).__name__)
    if workload is None:
        text = config.get_text_config(decoder=True)
        try:
            workload = Workload.from_config(text.to_dict(), **({"precision": precision} if precision else {}))
        except CloneRLError as error:
            raise UnsupportedModelError(
                f"{name}: its shape is not known: {error.message}", "give it with workload=Workload(...)"
            ) from None
    if workload.layers != stepper.layers:
        raise BadValueError(f"a workload of {workload.layers} layers for {name}", f"it has {stepper.layers}")
    folder = Path(name)
    if not folder.is_dir():
        return HostModel(name, stepper, None, workload, "")
    file = folder / PROBE
    probe = load_probe(file, workload.layers - 1, workload.hidden_size) if file.is_file() else None
    return HostModel(name, stepper, probe, workload, ModelFiles.of(folder).sha256)
