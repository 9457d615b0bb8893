"""The sheets of attention."""

from typing import TYPE_CHECKING, Any

import torch

from visionattn.analysis.subject import NoSheetError, Subject

if TYPE_CHECKING:
    from visionattn.analysis.looking import LookOptions
    from visionattn.viz.image import Pixels


def draw_attention(subject: Subject, options: "LookOptions") -> "Pixels":
    """Draw the attention of the class token in a block, by default the last: a row per image, a column per head."""
    from visionattn.viz.heat_maps import draw_heat_maps

    model: Any = subject.model
    blocks = list(getattr(model, "blocks", []))
    if not blocks or not hasattr(getattr(blocks[-1], "attn", None), "attn_drop"):
        raise NoSheetError(f"{subject.loaded.name} is no ViT with a sequence of attention blocks")
    number = (options.blocks or [-1])[0]
    attention: Any = blocks[number].attn
    weights: list[Any] = []
    handle = attention.attn_drop.register_forward_pre_hook(lambda module, inputs: weights.append(inputs[0][:, :, 0]))
    fused, attention.fused_attn = attention.fused_attn, False
    try:
        with torch.inference_mode():
            for image in subject.images:
                model(image[None])
    finally:
        attention.fused_attn = fused
        handle.remove()
    rows, columns = model.patch_embed.grid_size
    maps = torch.cat(weights)[:, :, model.num_prefix_tokens :].unflatten(-1, (rows, columns)).float().cpu().numpy()
    captions = [f"head {head}" for head in range(maps.shape[1])]
    title = f"{subject.title}: attention of the class token, block {number % len(blocks)}"
    return draw_heat_maps(subject.pixels, maps, captions, title=title, height=options.height)
