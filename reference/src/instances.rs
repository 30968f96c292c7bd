//! The model in both types, compiled here once. A build that is not fully optimised shares these instances with every
//! crate and test program above; without them each of those would compile the whole model anew.

use crate::model::experts::DeepseekV2Moe;
use crate::model::layers::DecoderLayers;
use crate::{DeepseekV2ForCausalLM, DeepseekV2ForSequenceClassification, DeepseekV2Model, LatentCache, Real};

type Instances = [*const (); 13];

#[used]
static OF_BOTH_TYPES: [fn() -> Instances; 2] = [instances::<f32>, instances::<f64>];

fn instances<T: Real>() -> Instances {
    [
        DeepseekV2Model::<T>::load as *const (),
        DeepseekV2Model::<T>::forward as *const (),
        DecoderLayers::<T>::load as *const (),
        DecoderLayers::<T>::forward as *const (),
        DeepseekV2ForCausalLM::<T>::load as *const (),
        DeepseekV2ForCausalLM::<T>::forward as *const (),
        DeepseekV2ForCausalLM::<T>::generate as *const (),
        DeepseekV2ForSequenceClassification::<T>::load as *const (),
        DeepseekV2ForSequenceClassification::<T>::forward as *const (),
        DeepseekV2Moe::<T>::load as *const (),
        DeepseekV2Moe::<T>::forward as *const (),
        LatentCache::<T>::crop as *const (),
        LatentCache::<T>::reorder as *const (),
    ]
}
