//! What the paper adds in training, and no inference needs: losses that balance the load (2.2.3), and the dropping of
//! tokens (2.2.4).

pub mod balance_loss;
pub mod token_dropping;
