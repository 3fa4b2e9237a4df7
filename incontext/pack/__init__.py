"""Prompt packs: learned or compiled prompts that are saved, shared and combined."""

from __future__ import annotations

from incontext.pack.prompt_pack import PackError, PromptPack

__all__ = ["PackError", "PromptPack"]
