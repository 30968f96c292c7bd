//! Many pieces of work on all processors, told of in their order.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, mpsc};

use crate::error::Result;

/// Does `work` on each item, up to `most` at a time. What comes of them is returned in the order of the items; `done` is told the
/// place of each and what came of it, as soon as it and all before it are there.
///
/// # Errors
/// If one of them is at fault; no further item is begun then.
pub fn in_order<I: Send, V: Send>(
    most: usize,
    items: Vec<I>,
    work: impl Fn(I) -> Result<V> + Sync,
    mut done: impl FnMut(usize, &V),
) -> Result<Vec<V>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len()).min(most);
    let queue = Mutex::new(items.into_iter().enumerate());
    let (sender, results) = mpsc::channel();
    let (queue, work) = (&queue, &work);
    let take = move |sender: mpsc::Sender<_>| {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((place, item)) = next else { break };
            // the receiver is gone once an item was at fault
            if sender.send((place, work(item))).is_err() {
                break;
            }
        }
    };
    std::thread::scope(|scope| {
        let mut working = 0;
        for _ in 0..threads {
            let sender = sender.clone();
            let spawned = std::thread::Builder::new().spawn_scoped(scope, move || take(sender));
            working += usize::from(spawned.is_ok());
        }
        match working {
            // There are no threads to be had: all of it first, then what came of it.
            0 => take(sender),
            _ => drop(sender),
        }
        let (mut waiting, mut found) = (HashMap::new(), Vec::new());
        for (place, result) in results {
            waiting.insert(place, result?);
            while let Some(value) = waiting.remove(&found.len()) {
                done(found.len(), &value);
                found.push(value);
            }
        }
        Ok(found)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::Error;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let slow_first = |item: u64| {
            std::thread::sleep(Duration::from_millis(if item == 0 { 30 } else { 0 }));
            Ok(10 * item)
        };
        let mut told = Vec::new();
        let found =
            in_order(usize::MAX, Vec::from_iter(0..20), slow_first, |place, value| told.push((place, *value))).unwrap();
        assert_eq!(found, Vec::from_iter((0..20).map(|item| 10 * item)));
        assert_eq!(told, Vec::from_iter(found.into_iter().enumerate()));
    }

    #[test]
    fn the_first_fault_ends_it() {
        let odd_fails = |item: u64| if item % 2 == 1 { Err(Error::request("item", "even", item)) } else { Ok(item) };
        assert!(in_order(usize::MAX, vec![2, 4, 5, 6], odd_fails, |_, _| ()).is_err());
        assert!(in_order(1, Vec::new(), odd_fails, |_, _| ()).unwrap().is_empty());
    }
}
