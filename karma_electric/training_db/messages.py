"""Messages in the project's form, and in the ShareGPT form: `from` and `value`, roles human and gpt."""

from __future__ import annotations

ROLES_OF_SHAREGPT = {"human": "user", "gpt": "assistant"}


def from_sharegpt(value: object) -> object:
    """`value` with every message of the ShareGPT form in the project's; what is no message stays as it is."""
    if not isinstance(value, list):
        return value
    return [_message_from_sharegpt(message) for message in value]


def _message_from_sharegpt(value: object) -> object:
    if not isinstance(value, dict):
        return value
    if set(value) == {"from", "value"}:
        value = {"role": value["from"], "content": value["value"]}
    role = value.get("role")
    return {**value, "role": ROLES_OF_SHAREGPT.get(role, role)} if isinstance(role, str) else value
