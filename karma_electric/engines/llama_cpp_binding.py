"""The C interface of llama.cpp, as exported by the shared object of one pinned xllamacpp wheel.

The wheel does not promise this interface, so nothing is taken on trust: the installed version must be the pinned one,
every function must exist, the default parameters must have the values of that build, and a small tensor must show the
memory layout that the cap reads. Anything else is a SetupError, before a model is touched.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Iterator
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

from karma_electric.engines import llama_cpp_python
from karma_electric.errors import SetupError

DISTRIBUTION = "xllamacpp"
PINNED_VERSION = "2026.10.11549"
BUILD = "b11549"
_INSTALL = f"pip install {DISTRIBUTION}=={PINNED_VERSION}"

GGML_TYPE_F32 = 0
GGML_TYPE_F16 = 1
FLASH_ATTENTION_DISABLED = 0

# bool callback(tensor, ask, user_data) of ggml_backend_sched
EvalCallback = ctypes.CFUNCTYPE(c_bool, c_void_p, c_bool, c_void_p)
# void callback(level, text, user_data)
LogCallback = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)

_logger = logging.getLogger(__name__)
_LOG_LEVEL_ERROR = 4
_recent_errors: collections.deque[str] = collections.deque(maxlen=8)


class ModelParams(ctypes.Structure):
    """struct llama_model_params, 80 bytes."""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    )


class ContextParams(ctypes.Structure):
    """struct llama_context_params, 168 bytes."""

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", EvalCallback),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("moe_cache_size", c_size_t),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    )


class Batch(ctypes.Structure):
    """struct llama_batch: arrays of n_tokens entries each."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


class GgmlInitParams(ctypes.Structure):
    """struct ggml_init_params, for the tensor of the self-check."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


# name -> (result, arguments)
_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (LogCallback, c_void_p)),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (c_void_p, (c_char_p, ModelParams)),
    "llama_model_free": (None, (c_void_p,)),
    "llama_model_get_vocab": (c_void_p, (c_void_p,)),
    "llama_model_n_embd": (c_int32, (c_void_p,)),
    "llama_model_n_layer": (c_int32, (c_void_p,)),
    "llama_model_n_ctx_train": (c_int32, (c_void_p,)),
    "llama_model_chat_template": (c_char_p, (c_void_p, c_char_p)),
    "llama_init_from_model": (c_void_p, (c_void_p, ContextParams)),
    "llama_free": (None, (c_void_p,)),
    "llama_n_ctx": (c_uint32, (c_void_p,)),
    "llama_n_ubatch": (c_uint32, (c_void_p,)),
    "llama_get_memory": (c_void_p, (c_void_p,)),
    "llama_print_system_info": (c_char_p, ()),
    "llama_memory_clear": (None, (c_void_p, c_bool)),
    "llama_memory_seq_rm": (c_bool, (c_void_p, c_int32, c_int32, c_int32)),
    "llama_memory_seq_cp": (None, (c_void_p, c_int32, c_int32, c_int32, c_int32)),
    "llama_decode": (c_int32, (c_void_p, Batch)),
    "llama_get_logits_ith": (POINTER(c_float), (c_void_p, c_int32)),
    "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
    "llama_vocab_type": (c_int32, (c_void_p,)),
    "llama_vocab_bos": (c_int32, (c_void_p,)),
    "llama_vocab_eos": (c_int32, (c_void_p,)),
    "llama_vocab_eot": (c_int32, (c_void_p,)),
    "llama_vocab_pad": (c_int32, (c_void_p,)),
    "llama_vocab_get_add_bos": (c_bool, (c_void_p,)),
    "llama_vocab_is_eog": (c_bool, (c_void_p, c_int32)),
    "llama_vocab_get_text": (c_char_p, (c_void_p, c_int32)),
    "llama_tokenize": (c_int32, (c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool)),
    "llama_token_to_piece": (c_int32, (c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool)),
    "ggml_get_name": (c_char_p, (c_void_p,)),
    "ggml_set_name": (c_void_p, (c_void_p, c_char_p)),
    "ggml_nbytes": (c_size_t, (c_void_p,)),
    "ggml_nelements": (c_int64, (c_void_p,)),
    "ggml_nrows": (c_int64, (c_void_p,)),
    "ggml_backend_tensor_get": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "ggml_backend_tensor_set": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "ggml_init": (c_void_p, (GgmlInitParams,)),
    "ggml_new_tensor_2d": (c_void_p, (c_void_p, c_int, c_int64, c_int64)),
    "ggml_free": (None, (c_void_p,)),
}

# Values of build b11549; a field that has moved reads as something else.
_MODEL_DEFAULTS = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "main_gpu": 0,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
    "no_alloc": False,
    "load_mtp": False,
}
_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_rs_seq": 0,
    "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "ctx_type": 0,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0,
    "yarn_beta_slow": -1.0,
    "yarn_orig_ctx": 0,
    "defrag_thold": -1.0,
    "type_k": GGML_TYPE_F16,
    "type_v": GGML_TYPE_F16,
    "moe_cache_size": 0,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "n_samplers": 0,
}
_UNSET_MODEL_POINTERS = ("devices", "tensor_buft_overrides", "tensor_split", "progress_callback", "kv_overrides")
_UNSET_CONTEXT_POINTERS = ("cb_eval", "cb_eval_user_data", "abort_callback", "samplers", "ctx_other")


# Of any build: where llama-cpp-python declares the structs, its libraries must read them so.
_LASTING_DEFAULTS = {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "type_k": GGML_TYPE_F16}
_REPLACED_STRUCTS: dict[type[ctypes.Structure], str] = {
    ModelParams: "llama_model_params",
    ContextParams: "llama_context_params",
}


@functools.cache
def load_library() -> ctypes.CDLL:
    """The checked library, loaded once a process; its log goes to `logging` at DEBUG.

    That of the pinned xllamacpp; where it is not installed, that of an installed llama-cpp-python.
    """
    if uses_llama_cpp_python():
        with _short_spinning():
            library: ctypes.CDLL = llama_cpp_python.load(_PROTOTYPES, _REPLACED_STRUCTS)
        llama_cpp_python.check_batch(Batch)
        check_defaults(library.llama_context_default_params(), _LASTING_DEFAULTS, ())
    else:
        check_version(installed_version())
        library = open_library(find_shared_object())
        check_defaults(library.llama_model_default_params(), _MODEL_DEFAULTS, _UNSET_MODEL_POINTERS)
        check_defaults(library.llama_context_default_params(), _CONTEXT_DEFAULTS, _UNSET_CONTEXT_POINTERS)
    check_tensor_layout(library)
    library.llama_log_set(_log_callback, None)
    library.llama_backend_init()
    return library


def uses_llama_cpp_python() -> bool:
    """Whether llama-cpp-python stands in for the pinned package."""
    return _version_of(DISTRIBUTION) is None and _version_of(llama_cpp_python.DISTRIBUTION) is not None


def build_name() -> str:
    """What computes, for the record: llama.cpp's build, or the package that carries one."""
    if uses_llama_cpp_python():
        return f"{llama_cpp_python.DISTRIBUTION} {_version_of(llama_cpp_python.DISTRIBUTION)}"
    return BUILD


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed_version() -> str:
    """The version of the installed distribution."""
    version = _version_of(DISTRIBUTION)
    if version is None:
        raise SetupError(f"{DISTRIBUTION} is not installed; run: {_INSTALL}")
    return version


def check_version(found: str) -> None:
    """Refuse any version but the one whose memory layouts are declared here."""
    if found != PINNED_VERSION:
        raise SetupError(
            f"{DISTRIBUTION} {found} is installed, expected exactly {PINNED_VERSION} (llama.cpp {BUILD}), whose C "
            f"interface the engine uses; run: {_INSTALL}"
        )


def find_shared_object() -> Path:
    """The wheel's shared object, found without importing the package."""
    spec = importlib.util.find_spec("xllamacpp")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    candidates = sorted(path for folder in folders for path in Path(folder).glob(f"{DISTRIBUTION}.*.so"))
    if len(candidates) != 1:
        raise SetupError(
            f"found {len(candidates)} shared objects of {DISTRIBUTION} in {', '.join(folders) or 'no folder'}, "
            f"expected 1; reinstall it: {_INSTALL} --force-reinstall"
        )
    return candidates[0]


def open_library(path: Path) -> ctypes.CDLL:
    """Load `path` and declare every function that the engine calls. Raises SetupError for a missing one."""
    try:
        with _short_spinning():
            library = ctypes.CDLL(str(path))
    except OSError as error:
        raise SetupError(f"{path}: cannot be loaded ({error}); reinstall it: {_INSTALL} --force-reinstall") from error
    for name, (result, arguments) in _PROTOTYPES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise SetupError(f"{path}: has no function {name}; expected llama.cpp {BUILD}") from error
        function.restype = result
        function.argtypes = arguments
    return library


@contextlib.contextmanager
def _short_spinning() -> Iterator[None]:
    """Let waiting threads of OpenMP sleep soon; it reads this when it is loaded. A setting of the user's stands.

    By default they spin for milliseconds. On two cores shared with other work that made two threads thirty times
    slower than one (measured: 2 instead of 70 tokens a second); on idle cores 1000 turns are as fast as the default.
    """
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = "1000"
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


def check_defaults(found: ctypes.Structure, expected: dict[str, Any], unset: tuple[str, ...]) -> None:
    """Compare a struct of default parameters with the known ones of this build."""
    actual = {name: getattr(found, name) for name in expected} | {name: bool(getattr(found, name)) for name in unset}
    for name, value in (expected | dict.fromkeys(unset, False)).items():
        if actual[name] != value:
            raise SetupError(
                f"{DISTRIBUTION}: {type(found).__name__}.{name} is {actual[name]!r} by default, expected {value!r} of "
                f"llama.cpp {BUILD}; reinstall it: {_INSTALL} --force-reinstall"
            )


def check_tensor_layout(library: ctypes.CDLL) -> None:
    """Make a small named tensor and see that type, size and name are read back as they were given."""
    context = library.ggml_init(GgmlInitParams(mem_size=1 << 16, mem_buffer=None, no_alloc=True))
    try:
        for type_id, bytes_each in ((GGML_TYPE_F32, 4), (GGML_TYPE_F16, 2)):
            tensor = library.ggml_new_tensor_2d(context, type_id, 6, 5)
            library.ggml_set_name(tensor, b"l_out-7")
            found = (
                tensor_type(tensor),
                library.ggml_nelements(tensor),
                library.ggml_nrows(tensor),
                library.ggml_nbytes(tensor),
                library.ggml_get_name(tensor),
            )
            if found != (type_id, 30, 5, 30 * bytes_each, b"l_out-7"):
                raise SetupError(f"{DISTRIBUTION}: a tensor reads as {found}; its layout is not that of {BUILD}")
    finally:
        library.ggml_free(context)


def tensor_type(tensor: int) -> int:
    """The ggml type of a tensor: the first field of the struct (the interface has no function for it)."""
    return c_int32.from_address(tensor).value


def recent_errors() -> str:
    """The last error lines that llama.cpp logged, as one line; reading them empties the list."""
    text = "; ".join(_recent_errors)
    _recent_errors.clear()
    return text


def _log(level: int, text: bytes | None, _user_data: int | None) -> None:
    line = (text or b"").decode("utf-8", "replace").strip()
    if not line:
        return
    if level == _LOG_LEVEL_ERROR:
        _recent_errors.append(line)
    _logger.debug("%s", line)


_log_callback = LogCallback(_log)  # alive as long as the library may call it
