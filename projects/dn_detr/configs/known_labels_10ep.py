"""DN-DETR that is told which classes are in an image, fine-tuned for 10 epochs from DN-DETR, ResNet-50.

Matching queries carry the label of the class that they are to find (section 5.7.1, table 4: 1 denoising group). The
paper does not say the learning rate; ours is that of training, dropped for the last two epochs.
"""

from detectron2.config import LazyCall as L

from dinox.modeling import KnownLabelQueries, OneClassPerImage

from .dn_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_groups.split = L(OneClassPerImage)()
model.query_groups.matching.known_labels = L(KnownLabelQueries)()
model.query_groups.denoising.groups.num_groups = 1

dataloader.test.mapper.known_labels = True  # of the ground truth

schedule.epochs = 10
schedule.drop_epochs = [8]

train.init_checkpoint = "./output/dn_detr_r50_50ep/model_final.pth"
train.output_dir = "./output/known_labels_10ep"
