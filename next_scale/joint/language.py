"""A language model of the `transformers` library as the trunk (the extra ``language``).

Any causal model of Llama's class will do: one that takes ``inputs_embeds``, asks the library's attention interface for
its attention, and keeps its keys and values in the library's cache. Its own table and head stay those of text; places
of pyramids come in beside them. Prefix attention is registered with the interface, and needs no mask. Sliding windows
are not kept to: every place sees all that its prefix says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from next_scale import flops
from next_scale.attention import PrefixAttention
from next_scale.errors import UserError, first_line
from next_scale.joint.parts import TextPart
from next_scale.joint.text import ByteCodec, TextCodec, TokenizerCodec
from next_scale.joint.trunk import Trunk
from next_scale.kernels.prefix_attention.grouped import attend

ATTENTION = "next_scale_prefix"
"""Name under which prefix attention is registered."""

# of a configuration: what would have code or kernels fetched from elsewhere
_FOREIGN = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config", "custom_pipelines")


def _prefix_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, prefix: PrefixAttention | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """(B, H, n, d) queries, (B, G, S, d) keys and values of G groups of heads, to (B, n, H, d)."""
    if options.get("softcap") is not None:
        raise UserError("this language model caps its attention, which prefix attention does not do: take another")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # a group of heads shares its keys
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    q, k, v = (part.transpose(1, 2) for part in (query, key, value))  # (B, H, n, d) -> (B, n, H, d)
    if prefix is not None:
        return prefix(q, k, v, scaling, dropout), None
    flops.report_attention(q, k.shape[1])
    return attend(q, k, v, scale=scaling, dropout=dropout), None


def _library() -> Any:
    """The library, with prefix attention registered. Raises UserError where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise UserError("a language model needs the extra: pip install 'next-scale[language]'") from None
    transformers.AttentionInterface.register(ATTENTION, _prefix_attention)
    return transformers


class LanguageCache:
    """The library's own cache of keys and values. ``end`` says how many places are in it."""

    def __init__(self, config: Any) -> None:
        self.store = _library().DynamicCache()

    @property
    def end(self) -> int:
        return self.store.get_seq_length()


class LanguageTrunk(Trunk):
    """A causal language model between embedded places and features.

    Args:
        model: folder or hub id of pretrained weights, in float32 here. None builds one of random weights.
        tokenizer: folder or hub id of the model's tokenizer; None takes bytes, which are its first 256 tokens then.
        lora: rank of low-rank updates (arXiv 2106.09685) of the attention's and the MLP's matrices, by the `peft`
            library, with the model's own weights kept as they are; 0 trains all of the model.
        lora_alpha: their scale is lora_alpha / lora.
        config: the model's whole configuration, of a checkpoint.
        sizes: of a model of random weights: what its configuration takes, as ``model_type: llama, hidden_size: 64``.

    Raises:
        UserError: the extra is not installed, or there is no such model, or it is of another class.
    """

    kind = "language"

    def __init__(
        self, model: str | None = None, tokenizer: str | None = None, lora: int = 0, lora_alpha: float = 16.0,
        config: Mapping[str, Any] | None = None, **sizes: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        library = _library()
        self.lora, self.lora_alpha, self.tokenizer = lora, lora_alpha, tokenizer
        language = self._pretrained(library, model, sizes) if model else self._random(library, dict(config or sizes))
        language.config.use_cache = True
        self.width, self.vocabulary = language.config.hidden_size, language.config.vocab_size
        try:
            language.set_attn_implementation(ATTENTION)
        except (KeyError, ValueError) as error:
            raise UserError(f"this language model takes no attention but its own: {first_line(error)}") from error
        if language.get_output_embeddings() is None or not language._supports_attention_backend:
            raise UserError("this language model is not of Llama's class: it lacks the attention interface or a head")
        self.language = self._adapted(language) if lora else language
        self.register_load_state_dict_post_hook(lambda module, _: module._plain.tie_weights())

    @staticmethod
    def _pretrained(library: Any, model: str, sizes: Mapping[str, Any]) -> nn.Module:
        if sizes:
            raise UserError(f"a pretrained language model has its own {min(sizes)}: leave it out")
        try:
            return library.AutoModelForCausalLM.from_pretrained(
                model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"no language model at {model}: {first_line(error)}") from error

    @staticmethod
    def _random(library: Any, config: dict[str, Any]) -> nn.Module:
        kind = config.pop("model_type", "llama")
        config = {name: value for name, value in config.items() if name[0] != "_" and name not in _FOREIGN}
        try:
            return library.AutoModelForCausalLM.from_config(library.AutoConfig.for_model(kind, **config))
        except Exception as error:  # the library checks configurations with errors of many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
            raise UserError(f"no language model of type '{kind}' can be built: {reason}") from error

    def _adapted(self, language: nn.Module) -> nn.Module:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise UserError("low-rank updates need the extra: pip install 'next-scale[language]'") from None
        # every matrix between the table and the head
        options = LoraConfig(r=self.lora, lora_alpha=self.lora_alpha, target_modules="all-linear", lora_dropout=0.0)
        return get_peft_model(language, options)

    @property
    def _plain(self) -> nn.Module:
        """The library's model, whether or not it has low-rank updates."""
        return self.language.get_base_model() if self.lora else self.language

    def text_codec(self, length: int) -> TextCodec:
        """See the base class; also where its tokenizer cannot be had, or it has too few tokens for bytes."""
        if self.tokenizer is None:
            if self.vocabulary < ByteCodec.size:
                raise UserError(f"bytes need a vocabulary of {ByteCodec.size}, and the language model's is smaller")
            return ByteCodec(length)
        try:
            reader = _library().AutoTokenizer.from_pretrained(self.tokenizer, trust_remote_code=False)
            definition, end = reader.backend_tokenizer.to_str().encode(), reader.eos_token_id
        except (OSError, ValueError, AttributeError, ImportError) as error:
            raise UserError(f"no tokenizer with a tokenizer.json at {self.tokenizer}: {first_line(error)}") from error
        if end is None:
            raise UserError(f"the tokenizer at {self.tokenizer} has no token that ends a text")
        return TokenizerCodec(definition, end, self.vocabulary, length)

    def text_part(self, codec: TextCodec) -> TextPart:
        return LanguageText(codec, self)

    def to_config(self) -> dict:
        config = self._plain.config.to_dict()
        for name in ("transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path"):
            config.pop(name, None)
        return {"kind": self.kind, "lora": self.lora, "lora_alpha": self.lora_alpha, "config": config}

    def forward(self, x: Tensor, prefix: PrefixAttention | None = None, cache: LanguageCache | None = None) -> Tensor:
        body = self._plain.base_model  # low-rank updates are inside its layers
        store = None if cache is None else cache.store
        out = body(inputs_embeds=x, cache=store, use_cache=cache is not None, prefix=prefix)
        return out.last_hidden_state.float()

    def cache(self, batch: int, length: int) -> LanguageCache:
        return LanguageCache(self._plain.config)

    def look(self, tokens: Tensor) -> Tensor:
        """The language model's table: (B, n) -> (B, n, D)."""
        return self._plain.get_input_embeddings()(tokens)

    def say(self, features: Tensor) -> Tensor:
        """The language model's head: (B, n, D) -> (B, n, V)."""
        return self._plain.get_output_embeddings()(features).float()


class LanguageText(TextPart):
    """Text as a language model knows it; only the mark before it is new.

    Args:
        trunk: the language model, which stays the owner of its table and head.
    """

    def __init__(self, codec: TextCodec, trunk: LanguageTrunk) -> None:
        super().__init__(codec, trunk.width)
        self._trunk = (trunk,)  # in a tuple, so that its weights are not this module's too

    def _build(self, width: int, std: float) -> None:
        """Table, head and places are the language model's."""

    def first(self, batch: int) -> Tensor:
        return self.begin.expand(batch, 1, -1)

    def shown(self, tokens: Tensor, place: int) -> Tensor:
        return self._trunk[0].look(tokens)

    def logits(self, features: Tensor, step: int) -> Tensor:
        return self.all_logits(features)

    def all_logits(self, features: Tensor) -> Tensor:
        return self._trunk[0].say(features)[..., : self.codes]  # bytes are the first tokens
