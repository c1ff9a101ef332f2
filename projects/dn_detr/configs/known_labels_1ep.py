"""DN-DETR that is told which classes are in an image, fine-tuned for 1 epoch from DN-DETR, ResNet-50.

At the learning rate that DN-DETR's training ends with; the paper does not say it.
"""

from .known_labels_10ep import dataloader, lr_multiplier, model, optimizer, schedule, train

schedule.epochs = 1
schedule.drop_epochs = []
optimizer.lr = 1e-5

train.output_dir = "./output/known_labels_1ep"
