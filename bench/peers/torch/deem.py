"""DEEM whole: a training step with its three losses, captions and pictures. Image maps are [N, h, w, D] throughout."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from convnext import ConvNext
from diffusion import MmfsNet, Unet, Vae, resample_table
from llama import Llama, TextHead
from qformer import Perceiver


def region(mask, h, w):
    """mask [N, H, W, 1], resized bilinearly, then above 0 -> [N, h, w, 1] of 0 and 1."""
    small = F.interpolate(mask.permute(0, 3, 1, 2), (h, w), mode="bilinear", align_corners=False)
    return (small > 0).permute(0, 2, 3, 1)


class Denoiser(nn.Module):
    def __init__(self, c):
        super().__init__()
        sd = c["sd"]
        self.vae, self.unet = Vae(sd["vae"]), Unet(sd["unet"])
        self.mmfs_module = MmfsNet(sd["mmfs"], self.unet.residual_widths(), c["image_embed_dim"])
        s = sd["scheduler"]
        steps = s.get("num_train_timesteps", 1000)
        first, last = s.get("beta_start", 1e-4), s.get("beta_end", 0.02)
        if s.get("beta_schedule", "linear") == "scaled_linear":
            betas = torch.linspace(first**0.5, last**0.5, steps) ** 2
        else:
            betas = torch.linspace(first, last, steps)
        self.alphas = (1 - betas).double().cumprod(0).float()
        self.kind, self.offset = s.get("prediction_type", "epsilon"), s.get("steps_offset", 0)
        self.last_alpha = 1.0 if s.get("set_alpha_to_one", True) else float(self.alphas[0])

    def squared_error(self, mean, logvar, eps, noise, t, context, maps, mask):
        a = self.alphas[t].view(-1, 1, 1, 1)
        with torch.no_grad():
            latent = (mean + (0.5 * logvar).exp() * eps) * self.vae.scale
            signal, dev = a.sqrt().to(latent.dtype), (1 - a).sqrt().to(latent.dtype)
            noisy = latent * signal + noise * dev
            target = noise if self.kind == "epsilon" else noise * signal - latent * dev
        return (self.unet(noisy, t, context, self.mmfs_module.over(maps, mask)) - target).square()

    def ddim(self, latent, context, negative, maps, mask, steps, guidance):
        total = len(self.alphas)
        both = torch.cat([negative.expand_as(context), context])
        mmfs = self.mmfs_module.over([torch.cat([m, m]) for m in maps], torch.cat([mask, mask]))
        x = latent
        for i in reversed(range(steps)):
            t = i * (total // steps) + self.offset
            a = float(self.alphas[t])
            before = float(self.alphas[t - total // steps]) if t >= total // steps else self.last_alpha
            y = self.unet(torch.cat([x, x]), torch.full((2 * len(x),), t), both, mmfs)
            free, told = y.chunk(2)
            y = free + guidance * (told - free)
            if self.kind == "epsilon":
                clean, eps = (x - (1 - a) ** 0.5 * y) / a**0.5, y
            else:
                clean, eps = a**0.5 * x - (1 - a) ** 0.5 * y, a**0.5 * y + (1 - a) ** 0.5 * x
            x = before**0.5 * clean + (1 - before) ** 0.5 * eps
        return x


class VisualTokenizer(nn.Module):
    def __init__(self, c):
        super().__init__()
        p = c["visual_perceiver"]
        width = p["encoder_hidden_size"]
        self.encoder = Denoiser(c)
        self.sniffer = ConvNext(c["convnext"])
        self.pos_proj = nn.Linear(width, width)
        self.pos_ln, self.post_ln = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.proj_t = nn.Linear(p["hidden_size"], c["llm"]["hidden_size"])
        self.proj_i = nn.Linear(p["hidden_size"], c["image_embed_dim"])
        self.pos_embed = nn.Parameter(torch.zeros(c["grid_size"] ** 2 + 1, width), requires_grad=False)
        self.clip_mean = nn.Parameter(torch.zeros(1, 3, 1, 1), requires_grad=False)
        self.clip_std = nn.Parameter(torch.zeros(1, 3, 1, 1), requires_grad=False)
        self.perceiver_resampler = Perceiver(p)
        self.tables = {}

    def table(self, count, with_cls):
        if (count, with_cls) not in self.tables:
            with torch.inference_mode(False):
                table = self.pos_embed.detach()
                self.tables[count, with_cls] = resample_table(table if with_cls else table[1:], count)
        return self.tables[count, with_cls]

    def look(self, image, mask):
        tokens, maps = self.sniffer((image - self.clip_mean.view(3)) / self.clip_std.view(3))
        placed = [m + self.table(m.shape[1] * m.shape[2], False).view(1, *m.shape[1:]) for m in maps]
        q = self.pos_ln(self.pos_proj(tokens)) + self.table(tokens.shape[1], True)
        if mask is not None:
            side = math.isqrt(tokens.shape[1] - 1)
            inside = region(mask, side, side).flatten(1, 2)
            q = q * torch.cat([torch.ones_like(inside[:, :1]), inside], 1)
        return self.perceiver_resampler(self.post_ln(q)), placed


class Deem(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, self.ids = c, c["special_token_dict"]
        width = c["llm"]["hidden_size"]
        self.visual_tokenizer = VisualTokenizer(c)
        self.mm_decoder = Llama(
            {
                **c["llm"],
                "vocab_size": c["txt_vocab_size"],
                "image_embed_dim": c["image_embed_dim"],
                "cross_attention_frequency": c["cross_attention_frequency"],
                "spatial_shapes": c["spatial_shapes"],
            }
        )
        self.text_decoder = TextHead(width, c["txt_vocab_size"], c["llm"]["vocab_size"])
        p = c["image_perceiver"]
        self.image_decoder = nn.Module()
        self.image_decoder.perceiver_resampler = Perceiver(p)
        self.image_decoder.neg_prompt_embeds = nn.Parameter(torch.zeros(1, p["num_queries"], p["hidden_size"]))
        self.context_feat_proj = nn.Linear(width, width)
        self.soi_token = nn.Parameter(torch.zeros(1, width))

    # ---- rows of ids and images --------------------------------------------------------------------------------

    def images(self, b):
        """Row, column of the start and of the document's first token of every image, in reading order."""
        at = (b["text_ids"] == self.ids["soi_token_id"]).nonzero().tolist()
        bos = b["nearest_bos_idxs"].tolist() if "nearest_bos_idxs" in b else [0] * len(at)
        return [(row, column, first) for (row, column), first in zip(at, bos)]

    def embed(self, ids, images):
        x = self.mm_decoder.embed_tokens(ids)
        slots = (ids == self.ids["image_token_id"])[..., None].expand_as(x)
        x = x.masked_scatter(slots, self.visual_tokenizer.proj_t(images))
        return x + (ids == self.ids["soi_token_id"])[..., None] * self.soi_token

    def visible(self, b, maps):
        """Mask [B, L, N] of the images that positions may look at, and their maps [B, N, S, D]."""
        ids = b["text_ids"]
        rows, length = ids.shape
        most = int(b["num_image_per_seq"].max())
        at = torch.arange(length)
        bos = torch.where(ids == self.ids["bos_token_id"], at, -1).cummax(1).values
        starts, index = torch.full((rows, most), length), torch.full((rows, most), -1)
        seen = [0] * rows
        for i, (row, column, _) in enumerate(self.images(b)):
            starts[row, seen[row]], index[row, seen[row]] = column + 1, i
            seen[row] += 1
        start = starts[:, None]
        mask = (start > bos[..., None]) & (at[None, :, None] >= start)
        kept = torch.cat([m.flatten(1, 2) for m in maps if m.shape[1] in self.c["spatial_shapes"]], 1)
        return mask.float(), kept[index.clamp(min=0)] * (index >= 0)[..., None, None]

    def contexts(self, b, hidden):
        """What the image decoder reads for each image: states from its document's start to its own, newest first."""
        images = self.images(b)
        longest = max(column - first + 1 for _, column, first in images)
        index, keep = torch.zeros(len(images), longest, dtype=torch.long), torch.zeros(len(images), longest)
        for i, (row, column, first) in enumerate(images):
            count = column - first + 1
            index[i, :count] = row * hidden.shape[1] + torch.arange(column, first - 1, -1)
            keep[i, :count] = 1
        states = hidden.flatten(0, 1)[index] * keep[..., None].to(hidden.dtype)
        half = hidden.shape[-1] // 2
        angle = torch.arange(longest)[:, None] * 10000 ** (-torch.arange(half) / half)
        table = torch.cat([angle.sin(), angle.cos()], -1).to(hidden.dtype)
        return self.context_feat_proj(states) + table, keep

    def history(self, b, maps):
        """Earlier images of the same document, nearest last: the one before by the published code, all by the paper."""
        images, length = self.images(b), b["text_ids"].shape[1]
        official = self.c.get("compat", "official") == "official"
        seen = []
        for i, (row, _, first) in enumerate(images):
            own = []
            for j in range(i - 1, -1, -1):
                if row * length + first > images[j][0] * length + images[j][1] or (official and j < i - 1):
                    break
                own.insert(0, j)
            seen.append(own)
        most = max(1, *(len(s) for s in seen))
        index = torch.tensor([s + [-1] * (most - len(s)) for s in seen])
        mask = (index >= 0).long()
        return [m[index.clamp(min=0)] * mask[..., None, None, None] for m in maps], mask

    def labels(self, b):
        ids, t = b["text_ids"], self.ids
        now, then = ids[:, :-1], ids[:, 1:]
        drop = (then == t["pad_token_id"]) | (then == t["image_token_id"]) | (then == t["bos_token_id"])
        drop |= (b["attention_mask"][:, 1:] == 0) | ((now == t["bos_token_id"]) & (then == t["soi_token_id"]))
        return then.masked_fill(drop, -100)

    # ---- training ----------------------------------------------------------------------------------------------

    def losses(self, b):
        official = self.c.get("compat", "official") == "official"
        visual, sd = self.visual_tokenizer, self.visual_tokenizer.encoder
        mask = b.get("image_tensors_mask")
        queries, maps = visual.look(b["image_tensors"], mask)
        image_mask, features = self.visible(b, maps)
        embeds = self.embed(b["text_ids"], queries)
        hidden = self.mm_decoder(embeds, features, image_mask, b["attention_mask"])
        labels = b["labels"] if "labels" in b else self.labels(b)
        text = F.cross_entropy(self.text_decoder(hidden)[:, :-1].flatten(0, 1), labels.flatten())

        once = b["image_tensors_dec"] * 2 - 1
        with torch.no_grad():
            mean, logvar = sd.vae.encode(once)
        n = len(once)
        t = b["sniffer_t"]
        if official:
            t = torch.round((t - 500) * 0.6 + 500).long()
        if mask is None:
            seen = maps
        else:
            seen = [m * region(mask, *m.shape[1:3]) for m in maps]
        error = sd.squared_error(
            mean,
            logvar,
            b["sniffer_eps"],
            b["sniffer_noise"],
            t,
            visual.proj_i(queries),
            [m[:, None] for m in seen],
            torch.ones(n, 1, dtype=torch.long),
        )
        if mask is not None:
            inside = region(mask, *error.shape[1:3]).to(error.dtype)
            area = inside.sum((1, 2), keepdim=True)
            error = error * (inside * (inside.shape[1] * inside.shape[2]) / (area + 1e-8))
        sniffer = error.mean()

        if official:
            with torch.no_grad():
                mean, logvar = sd.vae.encode(once * 2 - 1)
        context, keep = self.contexts(b, hidden)
        history, has = self.history(b, maps)
        told = self.image_decoder.perceiver_resampler(context, keep)
        free = b["uncond_rand"].float().view(-1, 1, 1) < self.c.get("uncond_prob", 0.1)
        told = torch.where(free, self.image_decoder.neg_prompt_embeds, told)
        # Images whose context is bos and soi alone carry no loss: they are not denoised.
        real = (keep.sum(1) > 2).nonzero()[:, 0]
        pick = lambda x: x if len(real) == n else x[real]
        error = sd.squared_error(
            *(pick(x) for x in (mean, logvar, b["img_eps"], b["img_noise"], b["img_t"], told)),
            [pick(m) for m in history],
            pick(has),
        )
        image = error.mean() * (len(real) / n)
        w = self.c["loss_weights"]
        total = w["txt"] * text + w["img"] * image + w["sniffer"] * sniffer
        return {"loss": total, "loss_txt": text, "loss_img": image, "loss_sniffer": sniffer}

    # ---- generation --------------------------------------------------------------------------------------------

    def caption(self, b, count, banned):
        """Greedy continuation of one row that holds an image."""
        ids = b["text_ids"]
        queries, maps = self.visual_tokenizer.look(b["image_tensors"], None)
        image_mask, features = self.visible(b, maps)
        caches = self.mm_decoder.make_caches(ids.shape[1] + count, queries.dtype)
        hidden = self.mm_decoder(self.embed(ids, queries), features, image_mask, None, caches)
        out = []
        for _ in range(count):
            out.append(self.pick(hidden[:, -1:], banned))
            if len(out) < count:
                hidden = self.mm_decoder(self.mm_decoder.embed_tokens(out[-1]), features, image_mask, None, caches)
        return torch.cat(out, 1)

    def pick(self, hidden, banned):
        logits = self.text_decoder(hidden)
        logits[..., banned] = -math.inf
        return logits.argmax(-1)

    def paint(self, b, steps, guidance):
        queries, maps = self.visual_tokenizer.look(b["image_tensors"], None)
        image_mask, features = self.visible(b, maps)
        embeds = self.embed(b["text_ids"], queries)
        hidden = self.mm_decoder(embeds, features, image_mask, b["attention_mask"])
        context, keep = self.contexts(b, hidden)
        history, has = self.history(b, maps)
        told = self.image_decoder.perceiver_resampler(context, keep)
        which, sd = b["which"], self.visual_tokenizer.encoder
        negative = self.image_decoder.neg_prompt_embeds
        maps = [m[which] for m in history]
        latent = sd.ddim(b["latent"], told[which], negative, maps, has[which], steps, guidance)
        return (sd.vae.decode(latent) / 2 + 0.5).clamp(0, 1)
