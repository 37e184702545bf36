"""What stands out in a run, and what to try: sentences for its report and for whoever waits for it."""

import math

from ..optim import Schedule

# What `findings` calls conspicuous.
CHANCE, FAR, GAP, RISE, ZEROS, LARGE, SMALL, WAITING = 0.98, 1.2, 0.15, 1.1, 0.95, 1e-1, 1e-6, 0.2
# A channel of a convolution has many pixels in which to differ from zero; a dense feature has one number for an image, and up to 28 % are
# zero for all 32 images of a batch in a run that reaches 98 %.
DEAD_CONV, DEAD_DENSE = 0.1, 0.4


def at_chance(metrics, classes):
    """Whether an epoch did not do better than guessing: by its losses, and since a confident mistake costs much, by its accuracy too."""
    return (classes > 1 and min(metrics["train_loss"], metrics["val_loss"]) > CHANCE * math.log(classes)
            and max(metrics["train_top1"], metrics["val_top1"]) < 1 / classes + min(0.5 / classes, 0.1))


def overshot(metrics):
    """Whether an epoch's layers show that steps were too large: nearly all outputs zero, dead channels, or weights that still change by much."""
    return any((of.get("zero") or 0) > ZEROS or (of.get("dead") or 0) > most_dead(name) or (of.get("ratio") or 0) > LARGE
               for name, of in (metrics.get("layers") or {}).items())


def most_dead(name):
    return DEAD_CONV if name.startswith("conv") else DEAD_DENSE


def unlearnt(config, metrics):
    """A sentence on a run whose last epoch did no better than guessing, and what to try; None of any other, and of one that still warms up."""
    last, classes, options = metrics[-1], len(config["classes"]), config["options"]
    warm = Schedule(options["schedule"], 1.0, 1, 1).warm_epochs if options.get("schedule") else 0
    if last["epoch"] <= math.ceil(warm) or not at_chance(last, classes):
        return None
    guess, right = math.log(classes), percent(max(last["train_top1"], last["val_top1"]))
    far, lost = max(last["train_loss"], last["val_loss"]) > FAR * guess, any(not at_chance(m, classes) for m in metrics[:-1])
    than = (f"far above ln({classes}) = {guess:.3f}, that of guessing" if far else
            f"not below {CHANCE} ln({classes}) = {CHANCE * guess:.3f}, where guessing has ln({classes}) = {guess:.3f}")
    if options.get("init") == "published" and not far and not lost:      # they leave many channels dead, which is no word on the rate
        advice = "--init he, as the published first weights need much data and time, and see that the images are in the right folders"
    elif far or lost or overshot(last):
        advice = "a smaller --lr or a longer warm-up in a new run"
    else:
        advice = "a larger --lr or more epochs, and see that the images are in the right folders"
    return (f"After epoch {last['epoch']} the loss, {last['train_loss']:.3f} in training and {last['val_loss']:.3f} in validation, is {than}, and no more than "
            f"{right} are right, so {'what was learnt before is lost' if lost else 'nothing is learnt yet'}: try {advice}.")


def findings(config, metrics):
    """What stands out in the last epoch and what to try, a sentence each."""
    last, classes, found = metrics[-1], len(config["classes"]), []
    lowest, guesses, stuck = min(metrics, key=lambda m: m["val_loss"]), at_chance(last, classes), unlearnt(config, metrics)
    fading = last.get("lr") is not None and last["lr"] < 0.01 * max(m.get("lr") or 0 for m in metrics)      # updates are small then, as they should be
    spent = last.get("seconds") or {}

    def layers(key, form, conspicuous, what):
        """Adds what is to be said of the layers, if any, whose value of a key is conspicuous(name, value)."""
        those = [(name, of[key]) for name, of in (last.get("layers") or {}).items() if of.get(key) is not None and conspicuous(name, of[key])]
        if those:
            found.append("In " + ", ".join(f"{name} ({form(value)})" for name, value in those) + f", {what}.")

    if stuck:
        found.append(stuck)
    if not guesses and last["train_top1"] - last["val_top1"] > GAP:
        found.append(f"Training accuracy, {percent(last['train_top1'])}, is far above validation accuracy, {percent(last['val_top1'])}, so the net "
                     "learns its images by heart: try more images, more augmentation or a larger --weight-decay.")
    if not guesses and last["epoch"] - lowest["epoch"] >= 2 and last["val_loss"] > RISE * lowest["val_loss"]:
        found.append(f"The validation loss was lowest after epoch {lowest['epoch']}, {lowest['val_loss']:.3f}, and has risen to "
                     f"{last['val_loss']:.3f}: try fewer epochs, more augmentation or a larger --weight-decay.")
    smaller = overshot(last) or stuck is not None and "smaller --lr" in stuck      # one advice on the rate, not two
    layers("zero", percent, lambda name, zero: zero > ZEROS, f"more than {percent(ZEROS)} of the outputs are zero, and little can be learnt through "
           "them: try a smaller --lr, a longer warm-up or --init he")
    layers("dead", percent, lambda name, dead: dead > most_dead(name), "channels are zero for every image "
           "that was looked at, so no gradient reaches their weights: try a smaller --lr or a longer warm-up in a new run")
    layers("ratio", "{:.2g}".format, lambda name, ratio: ratio > LARGE, "a step changes the weights by more than a tenth of their size: try a smaller "
           "--lr or a longer warm-up")
    layers("ratio", "{:.1e}".format, lambda name, ratio: ratio < SMALL and not fading and not smaller, "a step changes the weights by less than a millionth of their "
           "size: try a larger --lr, and look for dead layers above")
    if spent.get("data", 0) > WAITING * sum(spent.values()):
        found.append(f"A step waits for its pictures in {percent(spent['data'] / sum(spent.values()))} of its time: try more --threads, or store the "
                     "pictures at a smaller size.")
    return found


def percent(part):
    return f"{100 * part:.1f} %"
