"""LoRA: train the backbone under a head by small matrices beside its attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..models.modeling_backbone import PreTrainedHead

if TYPE_CHECKING:
    from peft import LoraConfig

# The names of query and value in ESM-2 and BERT, T5, and the newer models in that order.
ATTENTION = r"backbone\.(.*\.)?(query|value|q|v|q_proj|v_proj)"


def lora_config(model: PreTrainedHead, rank: int = 8, **options: Any) -> LoraConfig:
    """Return a LoRA configuration: the attention of a model's backbone, and its head whole.

    The adapter goes on the whole model, `get_peft_model(model, lora_config(model))`, and is saved
    and loaded alone. It names the model it was made for by the folder or Hub id of that model, so
    save a new model before.

    Args:
        model: A PLASMA model with a backbone, or ProtAlign with a sequence encoder; its structure
            encoder stays as it is.
        rank: Inner width of the matrices.
        **options: Further fields of `peft.LoraConfig`: target_modules, lora_alpha, lora_dropout.

    Example:
        >>> from transformers import EsmConfig
        >>> from plasma_hf import PlasmaConfig, PlasmaModel
        >>> esm = EsmConfig(vocab_size=33, pad_token_id=1, mask_token_id=32, hidden_size=16,
        ...     num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> lora_config(PlasmaModel(PlasmaConfig(plm_config=esm)), rank=4).modules_to_save
        ['alignment_head']
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("LoRA needs peft; install it with: pip install peft") from error
    if model.backbone is None:
        raise ValueError(
            "this model is a head without a backbone, and an adapter goes beside the backbone's "
            "weights; load it first with model.load_backbone()."
        )
    # A head without parameters is a placeholder; there is nothing of it to save.
    encoders = ("backbone", "structure_encoder")
    parts = {name: part for name, part in model.named_children() if name not in encoders}
    saved = [name for name in parts if any(p.requires_grad for p in parts[name].parameters())]
    fields = {"target_modules": ATTENTION, "modules_to_save": saved or None, "r": rank}
    return LoraConfig(**fields | options)
