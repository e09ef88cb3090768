"""Numbers with a protocol: how good poses are.

Modules (import them by name; importing this package does nothing else):
  similarity: keypoint similarity, OKS, OKS-NMS, rescoring.
  pck: the PCK family (box, torso, crop side, heatmap, PCKh) as mergeable counts.
  coco_ap: COCO keypoint AP and AR, per-keypoint OKS table (coco_files checks input).

Every metric is a fraction between 0 and 1, is `None` where nothing was labelled, and
raises on non-finite predictions instead of scoring them.
"""
