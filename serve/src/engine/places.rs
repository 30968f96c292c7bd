//! Places in the batch and the queue, which a request has before it is computed.

use axum::http::StatusCode;
use dsv2::generate::ModelFolder;
use dsv2::generate::need::{self, InPool};
use dsv2::generate::pool::CHUNK;
use dsv2::memory::Size;
use dsv2::precision::Precision;
use tokio::sync::OwnedSemaphorePermit;

use super::Engine;
use crate::error::{ApiError, Result};

/// A place for a sequence, and what it takes there.
pub struct Place {
    pub(super) need: InPool,
    _permit: OwnedSemaphorePermit,
}

impl Engine {
    /// Whether there could ever be places for so many sequences.
    ///
    /// # Errors
    /// If not.
    pub fn could_hold(&self, sequences: usize) -> Result<()> {
        let most = self.limits.batch + self.limits.queue;
        if sequences > most {
            let message =
                format!("expected at most {most} sequences in a request (--max-batch and --queue), found {sequences}");
            return Err(ApiError::new(StatusCode::BAD_REQUEST, Some("too_many_sequences"), message));
        }
        Ok(())
    }

    /// Places for the sequences of a request, all or none.
    ///
    /// # Errors
    /// If one could never be computed, or there are never so many places, or there are not now.
    pub fn places(&self, sequences: &[(usize, usize)]) -> Result<Vec<Place>> {
        self.could_hold(sequences.len())?;
        let need = |(prompt, new): &(usize, usize)| in_pool(&self.folder, self.precision, *prompt, *new);
        let needs: Vec<InPool> = sequences.iter().map(need).collect();
        let most_of_one = needs.iter().map(|need| need.kept.0.saturating_add(need.reading.0)).max();
        if let Some(need) = most_of_one.filter(|need| *need > self.room).map(Size) {
            let message = format!(
                "expected a sequence that takes at most {} of memory, found one that may take {need}; a shorter prompt or fewer `max_tokens` take less",
                Size(self.room)
            );
            return Err(ApiError::new(StatusCode::BAD_REQUEST, Some("insufficient_memory"), message));
        }
        // all at a time: two requests that take one place after another could keep each other from having enough
        let taken = self.places.clone().try_acquire_many_owned(sequences.len() as u32);
        let mut taken = taken.map_err(|_| {
            let message = match sequences.len() {
                1 => "there is no free place in the batch and the queue".to_owned(),
                several => format!("there are no {several} free places in the batch and the queue"),
            };
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, Some("queue_full"), message)
        })?;
        Ok(needs.into_iter().filter_map(|need| Some(Place { need, _permit: taken.split(1)? })).collect())
    }
}

/// The angles of some models depend on the length of the whole prompt, which is then read at once.
fn in_pool(folder: &ModelFolder, precision: Precision, prompt: usize, new: usize) -> InPool {
    let whole = folder.angles_depend_on_length().unwrap_or(false);
    need::in_pool(folder, precision, prompt, new, if whole { prompt } else { prompt.min(CHUNK) })
}
