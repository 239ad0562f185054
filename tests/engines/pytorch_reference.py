"""The same model in PyTorch, float32, capped by the float64 formula: what llama.cpp is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from karma_electric.capping.formula import Cap, cap_hidden_states
from karma_electric.conversation import Message

QUESTION = (Message(role="user", content="What may I say to a friend whose cat has died? Řekni to krátce 🐈."),)


def write_varied_model(tiny_llama: Path, folder: Path) -> Path:
    """The tiny Llama with an output matrix of its own: with tied embeddings a random model repeats its last token."""
    reference = PytorchReference(tiny_llama)
    model = reference.model
    torch.manual_seed(1)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.1)
    reference.save(folder)
    return folder


class PytorchReference:
    """A Hugging Face folder in float32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        rows = [message.as_dict() for message in messages]
        ids: list[int] = self.tokenizer.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
        return ids

    def logits(self, token_ids: Sequence[int], cap: Cap | None = None) -> NDArray[np.float32]:
        """(tokens, vocab_size)."""
        return self._forward(token_ids, cap)[0]

    def projections(self, token_ids: Sequence[int], cap: Cap, *, capped: bool) -> dict[int, NDArray[np.float64]]:
        """layer -> (tokens,): <h, v> of what comes into the cap, with the caps below it at work or not."""
        return self._forward(token_ids, cap, act=capped)[1]

    def greedy(self, token_ids: Sequence[int], count: int, cap: Cap | None = None) -> list[int]:
        """`count` tokens, end tokens or not."""
        ids = list(token_ids)
        for _ in range(count):
            ids.append(int(self.logits(ids, cap)[-1].argmax()))
        return ids[len(token_ids) :]

    def _forward(
        self, token_ids: Sequence[int], cap: Cap | None, *, act: bool = True
    ) -> tuple[NDArray[np.float32], dict[int, NDArray[np.float64]]]:
        seen: dict[int, NDArray[np.float64]] = {}
        handles = []
        for layer in cap.layers if cap else ():
            assert cap is not None

            def hook(_module: Any, _inputs: Any, output: Any, layer: int = layer, cap: Cap = cap) -> Any:
                hidden = output.double().numpy()  # (1, tokens, hidden_size)
                seen[layer] = hidden[0] @ cap.directions[layer].astype(np.float64)
                lowered = cap_hidden_states(hidden, cap.directions[layer], tau=cap.taus[layer], alpha=cap.alpha)
                return torch.from_numpy(lowered).float() if act else output

            handles.append(self.model.model.layers[layer].register_forward_hook(hook))
        try:
            with torch.no_grad():
                return self.model(torch.tensor([list(token_ids)])).logits[0].numpy(), seen
        finally:
            for handle in handles:
                handle.remove()
