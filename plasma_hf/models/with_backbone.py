"""What a head does with its backbone: load it, stand on it, run it, save it or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from torch import Tensor
from transformers import PreTrainedModel

from .backbone import Backbone, residue_embeddings
from .language_model import build_language_model, width_of
from .padding import pad_residues
from .pretrained_backbone import OWN_MODELS, load_backbone
from .processing_plasma import PlasmaProcessor
from .safe_weights import SafeWeights, check_adapter
from .weights_digest import weights_digest


class WithBackbone(SafeWeights):
    """Let a head stand on a backbone that it does not have to carry along.

    Saved, the model holds its head, the configuration of its backbone in full, and the backbone's
    id, revision and recipe; loaded, it takes the backbone from there. Once the backbone's weights
    are no longer those of its id, trained or merged, they are saved with the head.
    """

    backbone: Any
    takes_embeddings = "query_embeddings and candidate_embeddings"  # for an error message
    _fetched: Backbone | None = None  # the backbone as it came from its id

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name_or_path: Any,
        *args: Any,
        load_backbone: bool = True,
        use_safetensors: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a saved model, and the backbone it stands on if that is not saved with it.

        Args:
            name_or_path: Folder or Hub id.
            *args: See `PreTrainedModel.from_pretrained`.
            load_backbone: False to leave the backbone away; the model then takes embeddings.
            use_safetensors: False to read pickles as well, of the model and of its backbone.
            **kwargs: See `PreTrainedModel.from_pretrained`.

        Raises:
            OSError: If weights are missing, damaged or a pickle, or the backbone is neither here
                nor can be fetched; the message has file or id, and what to do.
        """
        kwargs["use_safetensors"] = use_safetensors
        loaded = super().from_pretrained(name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if load_backbone and model.backbone is None and model.config.plm_config is not None:
            model.load_backbone(use_safetensors=use_safetensors)
        if model.backbone is not None:
            model.backbone.requires_grad_(False).eval()
        return loaded

    @property
    def processor(self) -> PlasmaProcessor | None:
        """The processor that came with the backbone, if the backbone came by itself."""
        return self._fetched.processor if self._fetched is not None else None

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a frozen backbone goes on embedding as in inference."""
        super().train(mode)
        if self.backbone is not None and not any(
            parameter.requires_grad for parameter in self.backbone.parameters()
        ):
            self.backbone.eval()
        return self

    def load_backbone(
        self,
        source: str | Path | None = None,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        use_safetensors: bool | None = None,
    ) -> PlasmaProcessor:
        """Load the backbone that the head was made for and put it under the head.

        Args:
            source: Folder with it, by default the id in the configuration.
            revision: Commit, branch or tag on the Hub, by default that of the configuration.
            trust_remote_code: Run Python code that the backbone brings.
            use_safetensors: See `plasma_hf.load_backbone`.

        Returns:
            Its processor, with the recipe that the head was trained on.

        Raises:
            ValueError: If the configuration names no backbone, or this one does not fit.
            OSError: If it is neither here nor can be fetched.
        """
        name = self.config.plm_name_or_path
        if source is None and name is None:
            raise ValueError(
                "this head does not say which backbone it was made for; give one: "
                "model.load_backbone('facebook/esm2_t33_650M_UR50D')."
            )
        backbone = load_backbone(
            source or name,
            self.config.plm_recipe,
            revision=revision or (self.config.plm_revision if source is None else None),
            device=self.device,
            trust_remote_code=trust_remote_code,
            use_safetensors=use_safetensors,
        )
        self.attach_backbone(backbone, name if source is not None else None)
        if source is not None:
            self.config.plm_name_or_path = str(source)
            self.config.plm_revision = backbone.revision
        return backbone.processor

    def attach_backbone(
        self, backbone: Backbone | PreTrainedModel, name: str | None = None
    ) -> Self:
        """Put a backbone under a head-only model, so that it takes token ids.

        The backbone is frozen: what trains is the head, or an adapter. To train all of it, call
        `model.backbone.requires_grad_(True)`.

        Args:
            backbone: What `load_backbone` gives, or an encoder with one vector a token.
            name: Its Hub id or folder; kept in the configuration.

        Raises:
            ValueError: If the head was made for another width or another backbone.
        """
        encoder: Any = backbone.model if isinstance(backbone, Backbone) else backbone
        config, width = self.config, width_of(encoder.config)
        if config.embedding_size not in (None, width):
            raise ValueError(
                f"this head takes residue embeddings of width {config.embedding_size}, "
                f"{type(encoder).__name__} gives {width}; attach the backbone the head was made "
                f"for, or make a head with {type(config).__name__}"
                f"({config.attribute_map.get('embedding_size', 'embedding_size')}={width})."
            )
        name = name or getattr(backbone, "name", None) or encoder.config.name_or_path or None
        made_for = config.plm_name_or_path
        if made_for and name and Path(made_for).name != Path(name).name:
            raise ValueError(
                f"this head was made for the backbone {made_for!r}, not for {name!r}; load "
                f"{made_for!r}, or train a head on {name!r}."
            )
        self.backbone = encoder.requires_grad_(False).eval()
        config.plm_config, config.embedding_size = encoder.config, width
        config.plm_name_or_path = name or made_for
        if isinstance(backbone, Backbone):
            config.plm_recipe = backbone.recipe.name
            # Under another name the commit would be of another repository.
            config.plm_revision = backbone.revision if name == backbone.name else None
            self._fetched = backbone
        return self

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        residue_mask: Tensor | None = None,
        backbone_atoms: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the backbone and keep the residues alone.

        Args:
            input_ids: `(batch, tokens)`.
            attention_mask: True at every token that is no padding; None if there is none.
            residue_mask: True at tokens that are residues; None if all attended ones are.
            backbone_atoms: N, CA and C in Å, `(batch, residues, 3, 3)`, for a backbone that reads
                structures.

        Returns:
            Embeddings `(batch, residues, hidden)`, padded with zeros, and their residue mask.
        """
        if self.backbone is None:
            raise ValueError(
                "this model is a head without a backbone and takes no token ids; pass "
                f"{self.takes_embeddings}, or put its backbone under it with "
                "model.load_backbone()."
            )
        return pad_residues(
            residue_embeddings(
                self.backbone, input_ids, attention_mask, residue_mask, backbone_atoms
            )
        )

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter, of safetensors; the backbone that it may sit on first."""
        self._check_adapter(*args, **kwargs)
        if self.backbone is None and self.config.plm_config is not None:
            self.load_backbone()
        return super().load_adapter(*args, **kwargs)

    def _check_adapter(
        self,
        peft_model_id: Any = None,
        *_: Any,
        load_config: Any = None,
        adapter_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        loading = dict(vars(load_config)) if load_config is not None else {}
        name = peft_model_id or loading.get("pretrained_model_name_or_path")
        options = loading.get("download_kwargs", {}) | kwargs | (adapter_kwargs or {})
        safe = kwargs.get("use_safetensors", loading.get("use_safetensors"))
        if name is not None:
            check_adapter(name, safe, options)

    def save_pretrained(
        self, save_directory: Any, *args: Any, save_backbone: bool | None = None, **kwargs: Any
    ) -> None:
        """Save the model.

        Args:
            save_directory: Folder to write.
            *args: See `PreTrainedModel.save_pretrained`.
            save_backbone: Save the backbone's weights as well; by default only where they are not,
                or no longer, those of the backbone's id.
            **kwargs: See `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: If `save_backbone=False` would lose weights.
        """
        fetched = self._fetched.digest if self._fetched is not None else None
        changed = self.backbone is not None and fetched != weights_digest(self.backbone)
        if save_backbone is False and changed:
            raise ValueError(
                "the weights of the backbone are not those of "
                f"{self.config.plm_name_or_path or 'any id'}; left out they would be lost. Save "
                "with save_backbone=True."
            )
        keep = changed if save_backbone is None else save_backbone
        names = (
            [] if self.backbone is None else [f"backbone.{k}" for k in self.backbone.state_dict()]
        )
        self._keys_to_ignore_on_save = set() if keep else set(names)
        self.config.backbone_saved = keep and self.backbone is not None
        super().save_pretrained(save_directory, *args, **kwargs)


def build_backbone(config: Any) -> PreTrainedModel:
    """Build an untrained backbone from its configuration."""
    if config.model_type in OWN_MODELS:
        return OWN_MODELS[config.model_type](config)
    return build_language_model(config)
