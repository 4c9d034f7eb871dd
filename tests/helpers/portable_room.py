"""Load and run the portable room where nothing but torch, transformers and numpy is installed.

`tests.helpers.environments` starts it there, by its path, on a copy of the room or on exported
folders.
"""

import importlib.util
import json
import sys

from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

ABSENT = ("plasma_hf", "numba", "peft", "Bio", "sklearn", "datasets", "accelerate")
PAIR = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV", "AYIAKQRQLSFVKSHFSRQ")


def from_the_room(folder, plasma, protalign):
    """Open both pipelines with the classes of a copy of `plasma_hf/models`, `folder`/room."""
    sys.path.insert(0, folder)
    from room.modeling_plasma import PlasmaConfig, PlasmaModel
    from room.modeling_protalign import ProtAlignConfig, ProtAlignModel
    from room.pipeline_protein_alignment import ProteinAlignmentPipeline
    from room.pipeline_protein_retrieval import ProteinRetrievalPipeline
    from room.processing_plasma import PlasmaProcessor
    from room.processing_protalign import ProtAlignProcessor

    kinds = {"plasma": (PlasmaConfig, PlasmaModel), "protalign": (ProtAlignConfig, ProtAlignModel)}
    for name, (config, model) in kinds.items():
        AutoConfig.register(name, config)
        AutoModel.register(config, model)
    align = ProteinAlignmentPipeline(AutoModel.from_pretrained(plasma), PlasmaProcessor())
    encoders, processor = AutoModel.from_pretrained(protalign), ProtAlignProcessor()
    return align, lambda of: ProteinRetrievalPipeline(encoders, processor, candidates=of)


def from_the_hub(plasma, protalign):
    """Open both pipelines from exported folders, by the code that is in them."""
    remote = {"trust_remote_code": True}
    for folder in (plasma, protalign):
        model = AutoModel.from_pretrained(folder, **remote)
        reads = AutoProcessor.from_pretrained(folder, **remote)
        assert all(
            type(part).__module__.startswith("transformers_modules.") for part in (model, reads)
        )
    align = pipeline("protein-alignment", model=plasma, **remote)
    options = {"model": protalign, **remote}
    return align, lambda of: pipeline("protein-retrieval", candidates=of, **options)


def run(align, search, structures):
    """Return scores of sequences, and of structures or why those cannot be read."""
    found = {"sequences": [align(PAIR)["score"], search(list(PAIR))(PAIR[0])[1]["score"]]}
    try:
        hits = search(structures)(structures[0])
        found["structures"] = [align(tuple(structures))["score"], hits[0]["score"]]
    except Exception as error:
        found["structures"] = f"{type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    assert not [name for name in ABSENT if importlib.util.find_spec(name)]
    way, folders, files = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")
    opened = {"room": from_the_room, "hub": from_the_hub}[way](*folders)
    print(json.dumps(run(*opened, files)))
