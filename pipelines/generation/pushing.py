"""Uploading a pipeline."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from codegrid.pipelines.artifacts.cards import pipeline_card
from codegrid.pipelines.artifacts.upload import upload
from codegrid.pipelines.generation.sheet import card_pictures
from codegrid.tokenizer.hub.push import check_login

if TYPE_CHECKING:
    from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline


class Pushing:
    """The method of `ImageGenerationPipeline` that uploads it."""

    def push_to_hub(
        self: ImageGenerationPipeline,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        license: str | None = None,
        base_tokenizer: str | None = None,
    ) -> str:
        """Save and upload in one commit, with a card and samples; return the commit's URL (see `publishing.push`)."""
        check_login(token)
        with TemporaryDirectory() as parent:
            folder = self.save_pretrained(Path(parent) / "pipeline")
            type(self).from_pretrained(folder)  # never upload a pipeline that does not load
            return upload(
                folder,
                "pipeline",
                self,
                pipeline_card(self.sequence, self.cards),
                repo_id,
                pictures=card_pictures(self),
                private=private,
                revision=revision,
                subfolder=subfolder,
                token=token,
                commit_message=commit_message,
                create_pr=create_pr,
                license=license,
                base_tokenizer=base_tokenizer,
            )
