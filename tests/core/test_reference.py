"""Reference mode against diffusers' own pipeline: same calls, same pictures, for every schedule that RORem's scripts use."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionXLInpaintPipeline

from core.conditioning import image_batch, mask_batch
from core.reference import reference_inpaint, reference_timesteps
from core.sampler import Guidance, item_generators
from tests.random_models import random_batch, random_prompt, random_unet, random_vae, scheduler


def pipeline(name: str) -> StableDiffusionXLInpaintPipeline:
    made = StableDiffusionXLInpaintPipeline(
        vae=random_vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=random_unet(),
        scheduler=scheduler(name),
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


CASES = [("euler", 4, 1.0), ("euler", 4, 0.99), ("euler", 50, 0.99), ("lcm", 4, 1.0), ("lcm", 4, 0.99), ("lcm", 50, 0.99)]


@pytest.mark.parametrize(("name", "steps", "strength"), CASES)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_pictures_equal_the_pipelines(name: str, steps: int, strength: float, guidance_scale: float) -> None:
    if guidance_scale > 1 and steps == 50:
        steps = 12  # 11 calls: the same code in a fraction of the time
    source_BHW3, mask_BHW = random_batch(2)
    source, mask = image_batch(source_BHW3), mask_batch(mask_BHW)
    prompt, null = random_prompt(0), random_prompt(1)
    theirs = pipeline(name)(
        prompt_embeds=prompt.tokens_1TD.expand(2, -1, -1),
        pooled_prompt_embeds=prompt.pooled_1P.expand(2, -1),
        negative_prompt_embeds=null.tokens_1TD.expand(2, -1, -1),
        negative_pooled_prompt_embeds=null.pooled_1P.expand(2, -1),
        image=(source + 1) / 2,
        mask_image=mask,
        height=64,
        width=64,
        num_inference_steps=steps,
        strength=strength,
        guidance_scale=guidance_scale,
        generator=item_generators([11, 12]),
        output_type="pt",
    ).images
    ours, sampled = reference_inpaint(
        random_unet(),
        random_vae(),
        scheduler(name),
        prompt,
        source,
        mask,
        steps=steps,
        strength=strength,
        generators=item_generators([11, 12]),
        guidance=Guidance(guidance_scale, null) if guidance_scale > 1 else None,
    )
    assert float(theirs.std()) > 0.01, "a constant picture would prove nothing"
    assert float(((ours / 2 + 0.5).clamp(0, 1) - theirs).abs().max()) <= 1e-4
    assert sampled.calls == int(steps * strength)


@pytest.mark.parametrize(
    ("name", "steps", "strength", "first", "calls"),
    [
        ("lcm", 4, 0.99, [759, 499, 259], 3),
        ("lcm", 4, 1.0, [999, 759, 499, 259], 4),
        ("lcm", 5, 0.99, [799, 599, 399, 199], 4),
        ("euler", 50, 0.99, None, 49),
        ("euler", 50, 0.9999, None, 49),
        ("euler", 50, 1.0, None, 50),
        ("euler", 25, 0.99, None, 24),
    ],
)
def test_strength_cuts_what_the_pipeline_cuts(name: str, steps: int, strength: float, first: list[int] | None, calls: int) -> None:
    timesteps = reference_timesteps(scheduler(name), steps, strength)
    assert len(timesteps) == calls
    assert first is None or timesteps.tolist() == first


def test_a_strength_that_leaves_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves none of 4 steps"):
        reference_timesteps(scheduler("euler"), 4, 0.1)


def test_batch_equals_singles_in_reference_mode() -> None:
    source_BHW3, mask_BHW = random_batch(3)
    source, mask = image_batch(source_BHW3), mask_batch(mask_BHW)

    def run(which: list[int]) -> torch.Tensor:
        return reference_inpaint(
            random_unet(),
            random_vae(),
            scheduler("lcm"),
            random_prompt(),
            source[which],
            mask[which],
            steps=4,
            strength=0.99,
            generators=item_generators([100 + index for index in which]),
        )[0]

    singles = torch.cat([run([index]) for index in range(3)])
    assert float((run([2, 0, 1]) - singles[[2, 0, 1]]).abs().max()) <= 1e-5
