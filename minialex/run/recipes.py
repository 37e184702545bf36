"""Recipes: options of minialex.train under a name. docs/recipes.md says where each comes from and what to expect of it.

An option given beside --recipe replaces the recipe's; keys of --augment replace its keys one by one.
"""

# The tutorial's ImageDataGenerator, Adam and fit, as Keras does them.
KERAS = {
    "net": "half", "size": 224, "side": 224, "fit": "squash", "batch": 32, "epochs": 10, "seed": 7, "drop_last": True,
    "augment": "mean=none,scale=1/255,crop=centre,flip=hv,rotation=40,shift=0.2,shear=0.2,zoom=0.2,fill=nearest",
    "optimizer": "adam", "lr": 0.001, "schedule": "constant", "init": "published",
}

# Krizhevsky, Sutskever and Hinton 2012, sections 4 and 5, to the letter.
PAPER = {
    "net": "paper", "size": 227, "side": 256, "batch": 128, "epochs": 90,
    "augment": "mean=image,scale=1,crop=random,flip=h,pca=eigenvalue,pca_strength=0.1",
    "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "form": "2012", "bias_lr": 1.0, "bias_decay": 1.0,
    "schedule": "plateau", "init": "published",
}

# What the released program did instead (net 145): layer-params-145.cfg, convdata_jpeg.py, weights.cu.
PAPER_CODE = PAPER | {
    "augment": "mean=image,scale=1,crop=random,flip=h,pca=std,pca_strength=0.1", "epochs": 91,
    "bias_lr": 2.0, "bias_decay": 0.0, "schedule": "multistep:25:51:79", "init": "2012-code",
}

# BVLC CaffeNet: models/bvlc_reference_caffenet/{train_val,solver}.prototxt; 100,000 steps of 256 are 20 epochs of ImageNet.
CAFFE = {
    "net": "caffenet", "size": 227, "side": 256, "batch": 256, "epochs": 90,
    "augment": "mean=image,scale=1,crop=random,flip=h",
    "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "form": "2012", "bias_lr": 2.0, "bias_decay": 0.0,
    "schedule": "step:20", "init": "published",
}

# torchvision's references/classification for alexnet: eight processes with batches of 32.
TORCHVISION = {
    "net": "owt", "size": 224, "side": 256, "batch": 256, "epochs": 90,
    "augment": "mean=123.675:116.28:103.53,scale=1/58.395:1/57.12:1/57.375,crop=resized,area=0.08:1,ratio=3/4:4/3,flip=h",
    "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "form": "torch", "bias_lr": 1.0, "bias_decay": 1.0,
    "schedule": "step:30", "init": "published",
}

# A few thousand photographs from scratch: the best of those that docs/recipes.md compares.
SMALL = {
    "net": "half", "size": 192, "side": 219, "batch": 32, "epochs": 100,
    "augment": "crop=resized,area=0.25:1,flip=h,brightness=0.2",
    "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-3, "form": "2012", "schedule": "cosine,warmup:3", "init": "he",
    "average": 0.998,
}

# After BVLC's models/finetune_flickr_style: a smaller learning rate (theirs is 0.001), and ten times that for the new classifier; with the crops and brightness of `small`.
FINETUNE = {
    "batch": 32, "epochs": 60, "augment": "crop=resized,area=0.25:1,flip=h,brightness=0.2",
    "optimizer": "sgd", "lr": 0.003, "momentum": 0.9, "weight_decay": 5e-4, "form": "2012", "schedule": "cosine,warmup:1", "lr_of": "fc8=10",
}

RECIPES = {"keras": KERAS, "2012": PAPER, "2012-code": PAPER_CODE, "caffe": CAFFE, "torchvision": TORCHVISION, "small": SMALL, "finetune": FINETUNE}
