"""Block fine-tuning of a Hugging Face model (arXiv 2409.15355, section 2.4): samples that `tessera train --export` wrote go in, a LoRA adapter
that Tessera loads comes out. It is `tessera train` once more, for models that want a GPU; README.md tells how to run it.

Each sample can be seen in two modes: in full mode every token attends to all before it, in block mode as block_mask.py says. Positions are the
prompt's in both. One set of weights is to serve both modes, so a sample is trained in both, or in one drawn for it. The loss is the mean -ln p of the
sample's targets; block mode is also drawn towards full mode of the same weights, by KL(full ‖ block) over the whole final block.
"""

import argparse
import hashlib
import json
import math
import os
import random
import sys
import time
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from block_mask import TILE, dense_mask, flex_mask

MODES = ["full", "block", "dual", "alternate"]  # dual: both, the loss being their mean; alternate: one of the two, drawn for each sample
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FAMILY = ["llama", "mistral"]  # the Hugging Face models that are architecture `llama` in a GGUF, which is what Tessera runs
SAVE_EVERY = 45  # seconds; leaves room for a step before a minute is over
DIVERGED = "training went astray. A lower --lr or --clip may help, in a run of its own"


class Unusable(Exception):
    """Something that was given, or came out, that training cannot go on with. The message is for the user."""


class Diverged(Unusable):
    """A loss or gradient is no finite number."""


@dataclass
class Sample:
    ids: torch.Tensor  # [T]
    blocks: list[int]  # lengths of the blocks, the last one the final block, which the answer belongs to
    targets: list[int]  # which of ids are to be predicted, in ascending order
    keep: bool = False  # the model is to say here what it says without the adapter; there are no targets


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    try:
        run(options)
    except KeyboardInterrupt:
        sys.exit(f"train.py: ended; the same command goes on from {state_path(options)}")
    except torch.OutOfMemoryError as e:
        sys.exit(f"train.py: out of memory: {e}\nhint: --checkpoint-activations needs less; {state_path(options)} has the last good state")
    except (Unusable, OSError) as e:
        sys.exit(f"train.py: {e}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description="Block fine-tuning: train a LoRA adapter that answers in block mode as in full mode.", allow_abbrev=False)
    p.add_argument("--model", required=True, help="a Hugging Face model: its folder, or its name on the Hub")
    p.add_argument("--samples", required=True, help="what `tessera train --export` wrote; all of it is learnt, once, in its order")
    p.add_argument("--out", required=True, help="the adapter's folder; the state of the run is kept beside it, in OUT.state")
    p.add_argument("--mode", choices=MODES, default="dual", help="what a sample is seen in; alternate draws full or block for each (default dual)")
    p.add_argument("--block-share", type=number(0), default=0.5, help="share of block mode: of the samples with --mode alternate, of the loss with dual (default 0.5)")
    p.add_argument("--keep-weight", type=number(0), default=4, help="weight of KL(base ‖ full) on samples to keep (default 4)")
    p.add_argument("--distill", type=number(0), default=1, help="weight of KL(full ‖ block); 0: none (default 1)")
    p.add_argument("--rank", type=int, default=16, help="of the adapter (default 16)")
    p.add_argument("--alpha", type=float, default=32, help="the adapter's changes are scaled by alpha/rank (default 32)")
    p.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="matrices that are changed (default all)")
    p.add_argument("--batch", type=int, default=4, help="samples a step, one after the other (default 4)")
    p.add_argument("--lr", type=number(0), default=1e-3, help="learning rate at its height (default 1e-3)")
    p.add_argument("--warm-up", type=number(0, 1), default=0.1, help="share of the steps on which it rises (default 0.1)")
    p.add_argument("--decay", type=number(0), default=0, help="weight decay (default 0)")
    p.add_argument("--clip", type=number(0), default=1, help="norm that gradients are scaled down to; 0: never (default 1)")
    p.add_argument("--seed", type=int, default=1, help="of all that is drawn (default 1)")
    p.add_argument("--dtype", choices=["bfloat16", "float32"], help="of the model (default bfloat16 on a GPU, float32 without); the adapter is float32")
    p.add_argument("--attention", choices=["flex", "dense"], help="FlexAttention or a dense mask (default flex on one CUDA GPU, dense elsewhere)")
    p.add_argument("--checkpoint-activations", action="store_true", help="compute activations twice, to keep fewer")
    o = p.parse_args(argv)
    if o.rank < 1 or o.batch < 1 or o.alpha <= 0 or o.lr <= 0:
        p.error(f"--rank {o.rank} --batch {o.batch} --alpha {o.alpha} --lr {o.lr}: want positive numbers")
    if o.mode == "full":
        o.distill = 0  # there is no block mode to be drawn
    gpus = torch.cuda.device_count()
    o.dtype = o.dtype or ("bfloat16" if gpus else "float32")
    o.attention = o.attention or ("flex" if gpus == 1 else "dense")
    if o.attention == "flex" and gpus != 1:
        p.error(f"--attention flex: {gpus} CUDA GPUs; want one")
    return o


def number(low: float, high: float = math.inf):
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high or math.isinf(value):
            raise argparse.ArgumentTypeError(f"{text}: want {low} to {high}")
        return value

    return parse


def run(o: argparse.Namespace) -> None:
    """Trains from where the state beside the adapter stands to the last step, and writes the adapter."""
    config = AutoConfig.from_pretrained(o.model)
    if config.model_type not in FAMILY:
        raise Unusable(f"{o.model}: config.json: model_type is {config.model_type!r}; Tessera runs {' and '.join(FAMILY)}")
    samples = read_samples(o.samples, config.vocab_size)
    steps, rest = divmod(len(samples), o.batch)
    if rest:
        raise Unusable(f"{o.samples}: {len(samples)} samples, expected a multiple of --batch {o.batch}")
    model = load(o)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    state = State(o, trained, adamw(trained.values(), o.decay))
    done = resumed = state.resume()
    saved = began = time.monotonic()
    tokens = 0
    while done < steps:
        try:
            seen = gather(model, samples, done, o)
        except Diverged:
            raise  # the weights are worth nothing: the state that was written before stays
        except BaseException:
            state.save(done)  # the weights are still those of the step before
            raise
        if time.monotonic() - saved > SAVE_EVERY:
            state.save(done)  # before the step: these weights gave losses that are numbers
            saved = time.monotonic()
        update(state.optimizer, seen, learning_rate(done, steps, o.lr, o.warm_up), o.clip)
        done += 1
        if done == steps:
            state.save(done)
        seconds = time.monotonic() - began
        tokens += seen.pop("tokens")
        values = ", ".join(f"{name} {value:.4f}" for name, value in seen.items())
        left = seconds / (done - resumed) * (steps - done) / 60
        print(f"step {done} of {steps}: {values}, {tokens / seconds:.0f} tokens/s, {left:.0f} min left", file=sys.stderr, flush=True)
    model.save_pretrained(o.out, save_embedding_layers=False)
    print(o.out)


def read_samples(path: str, vocabulary: int) -> list[Sample]:
    samples = []
    with open(path, encoding="utf-8") as lines:
        for n, line in enumerate(lines, 1):
            try:
                fields = json.loads(line)
                s = Sample(torch.tensor(fields["ids"], dtype=torch.long), fields["blocks"], fields["targets"] or [], fields.get("keep", False))
                wrong = fault(s, vocabulary)
                if fields.get("finals", 0) > 1:
                    wrong = f"{fields['finals']} questions over the same passages; this recipe takes samples of one: export them with --questions 1"
            except (ValueError, TypeError, KeyError) as e:
                wrong = f'is no {{"ids","blocks","targets"}} ({type(e).__name__}: {e})'
            if wrong:
                raise Unusable(f"{path}:{n}: {wrong}")
            samples.append(s)
    if not samples:
        raise Unusable(f"{path}: holds no sample")
    return samples


def fault(s: Sample, vocabulary: int) -> str | None:
    """What is wrong with a sample."""
    length = len(s.ids)
    if length == 0 or min(s.blocks) < 1 or sum(s.blocks) != length:
        return f"blocks of {s.blocks} tokens for {length} ids; expected as many, and at least one in each"
    if s.ids.min() < 0 or s.ids.max() >= vocabulary:
        return f"ids from {s.ids.min()} to {s.ids.max()}; the model's vocabulary has 0 to {vocabulary - 1}. Was the export made with its GGUF?"
    if s.keep:
        return None if not s.targets and s.blocks[-1] > 1 else f"targets {s.targets} of a sample to keep; expected none, and two tokens in the final block"
    if not s.targets or s.targets != sorted(set(s.targets)) or s.targets[0] < 1 or s.targets[-1] >= length:
        return f"targets {s.targets}; expected some, ascending, from 1 to {length - 1}"
    return None


def load(o: argparse.Namespace) -> torch.nn.Module:
    """The model with a new adapter: A uniform in ±1/√in, B zero, so that it changes nothing yet."""
    gpus = torch.cuda.device_count()
    model = AutoModelForCausalLM.from_pretrained(
        o.model,
        dtype=o.dtype,
        attn_implementation="flex_attention" if o.attention == "flex" else "sdpa",
        device_map="auto" if gpus > 1 else "cuda" if gpus else "cpu",  # auto: layers are spread over the GPUs
    )
    if o.checkpoint_activations:
        model.activation_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(o.seed)
    return get_peft_model(model, LoraConfig(r=o.rank, lora_alpha=o.alpha, target_modules=o.targets, task_type="CAUSAL_LM")).train()


def adamw(parameters, decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay)


def learning_rate(step: int, steps: int, height: float, warm_up: float) -> float:
    """The rate of a step, counted from 0: a rise to the height, then a fall that would reach zero after the last step."""
    rise = math.floor(warm_up * steps + 0.5)
    if step + 1 <= rise:
        return height * (step + 1) / rise
    return height * (steps - step) / max(steps - rise, 1)


def gather(model: torch.nn.Module, samples: list[Sample], step: int, o: argparse.Namespace) -> dict[str, float]:
    """Leaves the gradient of a step, counted from 0, in the parameters, and returns the means of its batch."""
    model.zero_grad()
    values: dict[str, list[float]] = {}
    tokens = 0
    for i in range(step * o.batch, (step + 1) * o.batch):
        seen = learn(model, samples[i], drawn(o.mode, o.block_share, o.seed, i), o.block_share, o.distill, o.keep_weight, 1 / o.batch, o.attention)
        for name, value in seen.items():
            if not math.isfinite(value):
                raise Diverged(f"step {step + 1}: {name} of sample {i} is {value}; {DIVERGED}")
            values.setdefault(name, []).append(value)
        tokens += len(samples[i].ids) * sum(name in seen for name in ("full", "block", "kept"))
    norm = torch.nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None).item()
    if not math.isfinite(norm):
        raise Diverged(f"step {step + 1}: the norm of the gradient is {norm}; {DIVERGED}")
    return {name: sum(v) / len(v) for name, v in values.items()} | {"gradient": norm, "tokens": tokens}


def update(optimizer: torch.optim.Optimizer, seen: dict[str, float], rate: float, clip: float) -> None:
    """Makes a step with the gradient that gather left."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        if clip and seen["gradient"] > clip:
            for p in group["params"]:
                p.grad *= clip / seen["gradient"]
    optimizer.step()
    seen["rate"] = rate


def drawn(mode: str, block_share: float, seed: int, i: int) -> str:
    """The mode of sample i: it depends on seed and i alone, so that a run that goes on draws the same."""
    if mode != "alternate":
        return mode
    return "block" if random.Random(f"{seed} {i}").random() < block_share else "full"


def learn(
    model: torch.nn.Module, s: Sample, mode: str, block_share: float, distill: float, keep: float, weight: float, attention: str
) -> dict[str, float]:
    """Adds the gradient of a sample, weighted, in the modes that are its, and returns what it came to: the mean -ln p of a target in "full" and
    "block" mode, and the mean "divergence" KL(full ‖ block) of a token in the final block. A sample to keep is seen in full mode, and came to the
    mean KL(base ‖ full), "kept", base being the model without the adapter."""
    if s.keep:
        rows, whole = rows_wanted(s, distill=True), [len(s.ids)]
        with torch.no_grad(), model.disable_adapter():
            base = logits(model, s, whole, rows, attention)
        apart = divergence(base, logits(model, s, whole, rows, attention))
        (weight * keep * apart).backward()
        return {"kept": apart.item()}
    if mode == "full":
        distill = 0
    share = {"full": weight, "block": weight}
    if mode == "dual":
        share = {"full": weight * (1 - block_share), "block": weight * block_share}
    rows = rows_wanted(s, distill > 0)
    n = len(s.targets)
    seen = {}
    if mode != "block" or distill:
        with torch.set_grad_enabled(mode != "block"):
            full = logits(model, s, [len(s.ids)], rows, attention)
        if mode != "block":
            loss = F.cross_entropy(full[:n], s.ids[s.targets].to(full.device))
            (share["full"] * loss).backward()
            seen["full"] = loss.item()
    if mode != "full":
        block = logits(model, s, s.blocks, rows, attention)
        loss = F.cross_entropy(block[:n], s.ids[s.targets].to(block.device))
        objective = share["block"] * loss
        seen["block"] = loss.item()
        if distill:
            apart = divergence(full.detach(), block)
            objective = objective + weight * distill * apart
            seen["divergence"] = apart.item()
        objective.backward()
    return seen


def rows_wanted(s: Sample, distill: bool) -> list[int]:
    """The tokens whose logits are needed: those that predict targets and, for distillation, all others of the final block that have a successor."""
    rows = [target - 1 for target in s.targets]
    if distill:
        known = set(rows)
        rows += [row for row in range(len(s.ids) - s.blocks[-1], len(s.ids) - 1) if row not in known]
    return rows


def logits(model: torch.nn.Module, s: Sample, blocks: list[int], rows: list[int], attention: str) -> torch.Tensor:
    """The logits of some rows, [N, V], float32. None before them are computed: of a large vocabulary they would take more memory than all else."""
    device, ids, first = model.device, s.ids, min(rows)
    if attention == "flex":
        ids = F.pad(ids, (0, -len(ids) % TILE))
        mask = flex_mask(blocks, len(ids), device)
    else:
        mask = dense_mask(blocks, device, model.dtype)
    with torch.autocast(device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        out = model(
            input_ids=ids[None].to(device),
            attention_mask=mask,
            position_ids=torch.arange(len(ids), device=device)[None],
            use_cache=False,
            logits_to_keep=len(ids) - first,
        )
    return out.logits[0, [row - first for row in rows]].float()


def divergence(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """The mean over rows of KL(teacher ‖ student)."""
    return F.kl_div(F.log_softmax(student, -1), F.log_softmax(teacher, -1), reduction="batchmean", log_target=True)


class State:
    """What a run needs to go on, and the file beside the adapter that keeps it."""

    def __init__(self, o: argparse.Namespace, trained: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer):
        self.path, self.trained, self.optimizer = state_path(o), trained, optimizer
        with open(o.samples, "rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        # All that decides how training goes on; bits may differ between ways of computing the same.
        self.options = {**vars(o), "samples": digest}
        for name in ("out", "attention", "checkpoint_activations"):
            del self.options[name]

    def save(self, done: int) -> None:
        """Writes the state after so many steps. The file is whole afterwards or what it was."""
        adapter = {name: p.detach() for name, p in self.trained.items()}
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        part = self.path + ".part"
        try:
            with open(part, "wb") as f:
                torch.save({"options": self.options, "done": done, "adapter": adapter, "optimizer": self.optimizer.state_dict()}, f)
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise Unusable(f"{part}: {e.strerror}; {self.path} has the state that was written before, if any") from e
        os.replace(part, self.path)

    def resume(self) -> int:
        """Takes up the state, where there is one, and returns how many steps were made."""
        if not os.path.exists(self.path):
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, want in self.options.items():
            if (is_ := state["options"].get(name)) != want:
                raise Unusable(f"{self.path}: is of a run with {name} {is_}, not {want}; to begin anew, remove it or choose another --out")
        with torch.no_grad():
            for name, p in self.trained.items():
                p.copy_(state["adapter"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        return state["done"]


def state_path(o: argparse.Namespace) -> str:
    return o.out.rstrip("/") + ".state"


if __name__ == "__main__":
    main()
