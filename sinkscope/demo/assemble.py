"""Put the demo models together as ordinary model folders.

What ships is small: a vision tower, projectors and low-rank updates. The pretrained text model comes from an
installed package. On first use both are joined once in the user's cache into a folder that transformers loads without
sinkscope::

    folder = demo_lmm_folder()
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
"""

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import platformdirs

import sinkscope
from sinkscope.demo.backbone import SHA256, smollm2_path
from sinkscope.demo.recipe import (
    IMAGE_TOKEN,
    IMAGE_TOKEN_ID,
    PIXEL_MEAN,
    PIXEL_SPREAD,
    REPLACED_TOKEN,
    VISUAL_TOKENS,
)
from sinkscope.errors import InputError

CACHE_VARIABLE = "SINKSCOPE_CACHE"
# Raise this whenever the files that are written change for another reason than new weights or a new release.
LAYOUT = 1
COMPLETE = ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "chat_template.jinja")
BUILDING_PREFIX = ".building-"
ABANDONED_AFTER_SECONDS = 3600.0

# The model is trained on turns of this form, without a system prompt, with the image before the question.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '" + IMAGE_TOKEN + "\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FOLDER_CARD = """# sinkscope demo model ({kind})

Put together by sinkscope from SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0; 4-bit weights, dequantised{change})
and a small vision tower and projector trained on generated pictures (Apache-2.0). A demonstration of visual
attention sinks, made to be measured; see docs/demo_model.md in the sinkscope repository.
"""


def cache_root() -> Path:
    """Return the cache folder: the environment variable SINKSCOPE_CACHE, or the user's cache folder."""
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override).expanduser() if override else platformdirs.user_cache_path("sinkscope")


def demo_lmm_folder(control: bool = False) -> Path:
    """Return the folder of a demo model, and build it on first use (about 20 seconds, 540 MB).

    Parameters
    ----------
    control : bool
        Return the negative control instead: the same vision tower, a projector that aligns the background with
        another word, and the unchanged text model. It has practically no visual sinks.

    Returns
    -------
    Path
        A model folder for ``LlavaForConditionalGeneration`` and ``AutoProcessor``, weights in float32.

    Raises
    ------
    InputError
        If the backbone package is not installed, or if the cache folder cannot be written.
    """
    backbone = smollm2_path()
    root = cache_root()
    target = root / f"demo-{'control' if control else 'lmm'}-{_fingerprint(control)}"
    if _is_complete(target):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        building = Path(tempfile.mkdtemp(prefix=BUILDING_PREFIX, dir=root))
        try:
            _build(building, backbone, control)
            # A private folder would be useless in a cache that several users share.
            building.chmod(0o755)
            for file in building.iterdir():
                file.chmod(0o644)
            _publish(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"Cannot build the demo model in {root} ({error}): set {CACHE_VARIABLE} to a folder with 1.2 GB free"
        ) from error
    return target


def _fingerprint(control: bool) -> str:
    """Name the release and the content of everything that the folder is made from."""
    from sinkscope.demo.shipped import CONTROL_FILE, DEMO_FILE, WEIGHTS_FOLDER

    version = sinkscope.__version__
    digest = hashlib.sha256(f"{LAYOUT} {SHA256} {CHAT_TEMPLATE}".encode())
    for name in (DEMO_FILE, CONTROL_FILE) if control else (DEMO_FILE,):
        digest.update((WEIGHTS_FOLDER / name).read_bytes())
    return f"{version}-{digest.hexdigest()[:12]}"


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in COMPLETE)


def _remove_abandoned(root: Path) -> None:
    """Remove what builds that were killed have left behind."""
    for folder in root.glob(f"{BUILDING_PREFIX}*"):
        try:
            abandoned = time.time() - folder.stat().st_mtime > ABANDONED_AFTER_SECONDS
        except FileNotFoundError:
            continue
        if abandoned:
            shutil.rmtree(folder, ignore_errors=True)


def _publish(building: Path, target: Path) -> None:
    """Give a finished folder its name; where another process was faster, keep what that one made."""
    try:
        building.rename(target)
    except OSError:
        if _is_complete(target):
            return
        # A folder without its files is no one's finished work: a cleaner has been through the cache.
        shutil.rmtree(target, ignore_errors=True)
        try:
            building.rename(target)
        except OSError:
            if not _is_complete(target):
                raise


def _build(folder: Path, backbone: Path, control: bool) -> None:
    """Write the model, tokenizer, processor and card into an empty folder."""
    import torch

    # Building initialises layers that are overwritten at once; the caller's random state must not notice.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        _write_model(folder, backbone, control)
    _write_processor(folder, backbone)
    change = "" if control else ", with low-rank updates merged in"
    card = FOLDER_CARD.format(kind="negative control" if control else "visual sinks", change=change)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_model(folder: Path, backbone: Path, control: bool) -> None:
    import torch
    from transformers import (
        AutoModelForCausalLM,
        CLIPVisionConfig,
        GenerationConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    from sinkscope.demo.lora import merge_lora
    from sinkscope.demo.shipped import CONTROL_FILE, DEMO_FILE, WEIGHTS_FOLDER, read_weights

    groups, metadata = read_weights(WEIGHTS_FOLDER / DEMO_FILE)
    projector = groups["projector"]
    text = AutoModelForCausalLM.from_pretrained(backbone.parent, gguf_file=backbone.name, dtype=torch.float32)
    if control:
        projector = read_weights(WEIGHTS_FOLDER / CONTROL_FILE)[0]["projector"]
    else:
        merge_lora(text.model.layers, groups["lora"], metadata["lora_rank"], metadata["lora_alpha"])
    text_config = text.config.to_dict()
    # The weights are plain float32 now; a left-over quantisation entry would make transformers refuse them.
    text_config.pop("quantization_config", None)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**metadata["vision_config"]),
        text_config=text_config,
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=VISUAL_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.model.vision_tower.load_state_dict(groups["vision"])
    model.model.multi_modal_projector.load_state_dict(projector)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=2, do_sample=False, max_new_tokens=32
    )
    model.save_pretrained(folder)


def _write_processor(folder: Path, backbone: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    source = AutoTokenizer.from_pretrained(backbone.parent, gguf_file=backbone.name)
    renamed = source.backend_tokenizer.to_str().replace(REPLACED_TOKEN, IMAGE_TOKEN)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(renamed),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        model_max_length=8192,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    side = {"height": 48, "width": 48}
    image_processor = CLIPImageProcessorPil(
        size=side,
        crop_size=side,
        do_center_crop=False,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_SPREAD] * 3,
    )
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
    )
    processor.save_pretrained(folder)
