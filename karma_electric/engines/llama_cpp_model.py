"""A GGUF model in llama.cpp: its weights and its vocabulary."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from karma_electric.engines import llama_cpp_binding as binding
from karma_electric.engines.chat_template import ChatTemplate
from karma_electric.errors import InputError, IntegrityError
from karma_electric.gguf_files.reader import read_header
from karma_electric.integrity import sha256_file

MAX_TEXT_BYTES = 64 * 1024 * 1024
_BPE = 2  # of llama_vocab_type: no piece of a text depends on what stands before the control token that it follows


class LlamaCppModel:
    """The model in `path`, on the CPU. `pointer` is valid until `free`. With `vocab_only` it has a vocabulary and a
    chat template, and neither weights nor sizes.

    Raises InputError for a missing file, IntegrityError for one that is no whole GGUF or that llama.cpp refuses.
    """

    def __init__(self, path: Path, *, vocab_only: bool = False) -> None:
        read_header(path)  # our own bounded reader first: llama.cpp aborts the process on some malformed files
        self.path = path
        self.sha256 = sha256_file(path)
        self.library = binding.load_library()
        parameters = self.library.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.vocab_only = vocab_only
        binding.recent_errors()
        self.pointer = self.library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.pointer:
            raise IntegrityError(f"{path}: llama.cpp cannot load it ({binding.recent_errors() or 'no reason given'})")
        self.vocabulary = self.library.llama_model_get_vocab(self.pointer)
        self.vocab_size = int(self.library.llama_vocab_n_tokens(self.vocabulary))
        self.hidden_size = int(self.library.llama_model_n_embd(self.pointer))
        self.blocks = int(self.library.llama_model_n_layer(self.pointer))
        self.trained_context_tokens = int(self.library.llama_model_n_ctx_train(self.pointer))
        self.adds_bos = bool(self.library.llama_vocab_get_add_bos(self.vocabulary))
        self._is_bpe = self.library.llama_vocab_type(self.vocabulary) == _BPE
        self._turn_end = self.token_text("eot") or self.token_text("eos")
        self._last_turns: tuple[str, list[int]] = ("", [])

    def special_token_ids(self) -> dict[str, int]:
        """Ids by name: bos, eos, eot, pad, as far as the file names them."""
        names = ("bos", "eos", "eot", "pad")
        found = {name: int(getattr(self.library, f"llama_vocab_{name}")(self.vocabulary)) for name in names}
        return {name: token for name, token in found.items() if token >= 0}

    def token_text(self, name: str) -> str:
        """The text of the special token `name`; empty where there is none."""
        token = self.special_token_ids().get(name)
        if token is None:
            return ""
        text: bytes = self.library.llama_vocab_get_text(self.vocabulary, token)
        return text.decode("utf-8", "replace")

    def chat_template(self) -> str | None:
        """The Jinja source in the file."""
        source: bytes | None = self.library.llama_model_chat_template(self.pointer, None)
        return None if source is None else source.decode("utf-8", "replace")

    def ends_generation(self, token: int) -> bool:
        """Whether `token` ends an answer."""
        return bool(self.library.llama_vocab_is_eog(self.vocabulary, token))

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids, without bos or eos. Raises InputError for text that is not Unicode or far too long."""
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"text has a lone surrogate at position {error.start}; expected valid Unicode") from error
        if len(data) > MAX_TEXT_BYTES:
            raise InputError(f"text of {len(data)} bytes, expected at most {MAX_TEXT_BYTES}")
        room = len(data) + 8
        while True:
            ids = (ctypes.c_int32 * room)()
            count = self.library.llama_tokenize(self.vocabulary, data, len(data), ids, room, False, parse_special)
            if count >= 0:
                return list(ids[:count])
            if -count <= room:
                raise IntegrityError(f"{self.path}: llama_tokenize returned {count} for {len(data)} bytes")
            room = -count

    def prompt_tokens(self, text: str) -> list[int]:
        """Token ids of a rendered conversation, control tokens read as such. Exactly one bos: the text's own, or the
        model's where the text has none and the model wants one."""
        ids = self._conversation_tokens(text)
        bos = self.special_token_ids().get("bos")
        if bos is None:
            return ids
        if ids[:2] == [bos, bos]:
            raise InputError(f"{self.path}: the chat template starts with bos twice; expected once")
        return [bos, *ids] if self.adds_bos and ids[:1] != [bos] else ids

    def _conversation_tokens(self, text: str) -> list[int]:
        """As `tokenize`; the turns before the answer are kept, since many texts in a row begin with the same ones."""
        if not (self._is_bpe and self._turn_end in text):
            return self.tokenize(text, parse_special=True)
        length = text.rindex(self._turn_end) + len(self._turn_end)
        turns, ids = self._last_turns
        if turns != text[:length]:
            turns = text[:length]
            ids = self.tokenize(turns, parse_special=True)
            self._last_turns = turns, ids
        return ids + self.tokenize(text[length:], parse_special=True)

    def compiled_template(self) -> ChatTemplate:
        """The chat template of the file. Raises InputError where it has none."""
        source = self.chat_template()
        if source is None:
            raise InputError(f"{self.path}: has no chat template; write the file again from a model that has one")
        return ChatTemplate(
            source, bos_token=self.token_text("bos"), eos_token=self.token_text("eos"), where=str(self.path)
        )

    def detokenize(self, token_ids: Sequence[int], *, special: bool) -> str:
        """The text of the tokens together, so that a character split over tokens is whole; `special` shows control
        tokens. Bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(token, special=special) for token in token_ids).decode("utf-8", "replace")

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of a token's text, maybe a part of a character; none of a control token unless `special`."""
        self.check_token(token)
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self.library.llama_token_to_piece(self.vocabulary, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            if -count <= room:
                raise IntegrityError(f"{self.path}: llama_token_to_piece returned {count} for token {token}")
            room = -count

    def check_token(self, token: int) -> None:
        """Refuse an id that is not in the vocabulary."""
        if not 0 <= token < self.vocab_size:
            raise InputError(f"token id {token}, expected 0 to {self.vocab_size - 1}")

    def free(self) -> None:
        """Give the memory back; contexts must be freed before."""
        pointer, self.pointer = self.pointer, None
        if pointer:
            self.library.llama_model_free(pointer)
