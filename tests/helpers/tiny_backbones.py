"""Small random backbones, each a folder as the Hub has it, made offline.

Vocabularies, files and configuration fields are the published ones unless a comment says
otherwise; width, depth and weights are not. Every function fills the folder, which need not be
there, and returns it.
"""

import json
from io import BytesIO
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, models, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from plasma_hf import PlasmaConfig, PlasmaModel, load_backbone
from plasma_hf.models.modeling_tmvec import TMVecConfig, TMVecModel
from plasma_hf.training import lora_config

WIDTH = 32

# The order of the twenty is that of ProstT5's published 3Di tokens; the last four are from memory.
T5_RESIDUES = "ALGVSREDTIPKFQNYMHWCXBOUZ"


def esm2(folder, width=WIDTH, layers=2, heads=4, inner=2 * WIDTH):
    """ESM-2, for example facebook/esm2_t33_650M_UR50D."""
    letters = [*"LAGVSERTIDPKQNFYMHWCXBUZO", ".", "-", "<null_1>", "<mask>"]
    vocabulary = ["<cls>", "<pad>", "<eos>", "<unk>", *letters]
    config = EsmConfig(
        vocab_size=len(vocabulary),
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-5,
        max_position_embeddings=1026,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
    )
    _save(folder, EsmForMaskedLM, config)
    _write(folder, "vocab.txt", "\n".join(vocabulary))
    _write(folder, "tokenizer_config.json", {"tokenizer_class": "EsmTokenizer"})
    return folder


def prot_bert(folder):
    """Rostlab/prot_bert."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVESIKRDTPNQFYMHCWXUBZO"]
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=1100,  # published: 40000
    )
    _save(folder, BertForMaskedLM, config)
    _write(folder, "vocab.txt", "\n".join(vocabulary) + "\n")
    _write(folder, "tokenizer_config.json", {"do_lower_case": False})
    return folder


def prot_t5(folder, half=False):
    """Rostlab/prot_t5_xl_half_uniref50-enc, an encoder alone; in half precision as published."""
    _save(folder, T5EncoderModel, _t5_config(vocab_size=128), half)
    _write_spiece(folder)
    _write(folder, "tokenizer_config.json", {"do_lower_case": False})
    return folder


def prost_t5(folder, half=False):
    """Rostlab/ProstT5: encoder and decoder, two directions, 3Di letters in lower case."""
    _save(folder, T5ForConditionalGeneration, _t5_config(vocab_size=150), half)
    _write_spiece(folder)
    states = [letter.lower() for letter in T5_RESIDUES[:20]]
    added = [*states, "<fold2AA>", "<AA2fold>"]
    _write(folder, "added_tokens.json", {token: 128 + i for i, token in enumerate(added)})
    special = _special_tokens(100)
    fields = {"do_lower_case": False, "extra_ids": 100, "tokenizer_class": "T5Tokenizer"}
    _write(folder, "tokenizer_config.json", special | fields)
    return folder


def ankh(folder, tokenizer_class="T5Tokenizer"):
    """ElnaggarLab/ankh-base: encoder and decoder, and a tokenizer.json without spiece.model.

    From transformers 5 on, AutoTokenizer rebuilds a T5Tokenizer with the pre-tokenizer of T5 and
    puts an <unk> before every word; PreTrainedTokenizerFast.from_pretrained reads the file as it
    is. With `tokenizer_class="PreTrainedTokenizerFast"` AutoTokenizer does so too.
    """
    # Known: 144 tokens, residues without a space mark, a space is unknown. Not known offline: the
    # order of the residues (here ProtT5's), how many of the rest are sentinels (here all), whether
    # there is a pre-tokenizer (here none), and the published class name.
    extra = 144 - 3 - len(T5_RESIDUES)
    pieces = ["<pad>", "</s>", "<unk>", *T5_RESIDUES, *_sentinels(extra)]
    tokenizer = Tokenizer(models.Unigram([(piece, 0.0) for piece in pieces], unk_id=2))
    tokenizer.add_special_tokens([*pieces[:3], *_sentinels(extra)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    config = _t5_config(
        vocab_size=len(pieces),
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=64,
        tie_word_embeddings=False,
    )
    _save(folder, T5ForConditionalGeneration, config)
    tokenizer.save(str(Path(folder) / "tokenizer.json"))
    special = _special_tokens(extra)
    _write(folder, "special_tokens_map.json", special)
    fields = {"extra_ids": extra, "tokenizer_class": tokenizer_class}
    _write(folder, "tokenizer_config.json", special | fields)
    return folder


def esmc(folder):
    """ESM C in the native form of transformers, for example biohub/ESMC-300M."""
    # Not in the oldest transformers that the package runs with.
    library = pytest.importorskip("transformers.models.esmc", exc_type=ImportError)
    config = library.EsmcConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=2 * WIDTH
    )
    _save(folder, library.EsmcForMaskedLM, config)
    library.EsmcTokenizer().save_pretrained(folder)
    return folder


def tm_vec_files(folder):
    """TM-Vec as its authors publish it: a Lightning checkpoint and a parameter file."""
    shape = {"intermediate_size": 2 * WIDTH, "protein_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TMVecModel(TMVecConfig(hidden_size=WIDTH, **shape))
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, Path(folder) / "tm_vec.ckpt")
    sizes = {"d_model": WIDTH, "dim_feedforward": 2 * WIDTH, "out_dim": 8}
    further = {"nhead": 4, "num_layers": 2, "dropout": 0.1, "activation": "relu", "lr0": 1e-4}
    _write(folder, "tm_vec_params.json", sizes | further)
    return folder


def protssn_files(folder):
    """ProtSSN as its authors publish it: a state dict."""
    message, edge = 8, 2 * WIDTH + 93 + 1
    layers = {"edge_mlp.0": (edge, 2 * edge), "edge_mlp.3": (2 * edge, message)}
    layers |= {"node_mlp.0": (WIDTH + message, 2 * WIDTH), "node_mlp.3": (2 * WIDTH, WIDTH)}
    shapes = {f"mpnn_layes.{i}.{name}": shape for i in range(2) for name, shape in layers.items()}
    state = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, shape in (shapes | {"lin": (WIDTH, 20)}).items():
            parameters = torch.nn.Linear(*shape).state_dict()
            state |= {f"GNN_model.{name}.{kind}": tensor for kind, tensor in parameters.items()}
    torch.save(state, Path(folder) / "protssn_k20_h8.pt")
    return folder


FAMILIES = {
    "esm2": esm2,
    "prot_bert": prot_bert,
    "prot_t5": prot_t5,
    "prost_t5": prost_t5,
    "ankh": ankh,
    "esmc": esmc,
}
"""Every family by name, for `pytest.mark.parametrize`."""


def _t5_config(**fields):
    return T5Config(
        d_model=WIDTH,
        d_kv=8,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        **fields,
    )


def _save(folder, model_class, config, half=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
    (model.half() if half else model).save_pretrained(folder)
    if config.model_type == "t5":
        # T5EncoderModel sets this to False; the published encoders say True.
        file = Path(folder) / "config.json"
        _write(folder, file.name, json.loads(file.read_text()) | {"is_encoder_decoder": True})


def _write_spiece(folder):
    """Write the SentencePiece model of ProtT5: 28 pieces, a residue is a word of one letter."""
    # In the n-th line come the first n letters, hence the pieces in this order.
    lines = (" ".join(T5_RESIDUES[:n]) for n in range(1, len(T5_RESIDUES) + 1))
    model = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type="word",
        vocab_size=3 + len(T5_RESIDUES),
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (Path(folder) / "spiece.model").write_bytes(model.getvalue())
    _write(folder, "special_tokens_map.json", _special_tokens(100))


def _special_tokens(extra):
    return {
        "additional_special_tokens": _sentinels(extra),
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }


def _sentinels(count):
    return [f"<extra_id_{i}>" for i in range(count)]


def _write(folder, name, content):
    text = content if isinstance(content, str) else json.dumps(content, indent=2)
    (Path(folder) / name).write_text(text, encoding="utf-8")


def base_and_adapter(folder):
    """Save a PLASMA model over ESM-2 as `folder / "base"`; return it, and it under an adapter."""
    peft = pytest.importorskip("peft")
    backbone = load_backbone(esm2(folder / "esm2"))
    model = PlasmaModel(PlasmaConfig(embedding_size=WIDTH, head_size=8)).attach_backbone(backbone)
    model.save_pretrained(folder / "base")
    model = PlasmaModel.from_pretrained(folder / "base")
    return model, peft.get_peft_model(model, lora_config(model, rank=2, init_lora_weights=False))
