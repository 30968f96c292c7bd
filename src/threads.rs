//! How many threads work.

use dsv2::{Error, Result};
use rayon::ThreadPoolBuilder;

/// What the variable is called. Rayon knows it too, and takes nonsense for nothing and any number for good.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// More threads than this are a mistake on any machine.
const MOST: usize = 1024;

/// Makes the threads that share the work: as many as RAYON_NUM_THREADS says, else as the machine has. Where the system refuses
/// to make them, this one does the work alone: the results are the same.
///
/// # Errors
/// If the variable says something else than a number, or too many.
pub fn make() -> Result<()> {
    let number = match std::env::var_os(VARIABLE).filter(|text| !text.is_empty()) {
        None => 0,
        Some(text) => {
            let number = text.to_str().and_then(|text| text.trim().parse().ok()).filter(|&number| number <= MOST);
            number.ok_or_else(|| {
                Error::request(VARIABLE, format!("a number of threads up to {MOST}"), format!("{text:?}"))
            })?
        }
    };
    if ThreadPoolBuilder::new().num_threads(number).build_global().is_err() {
        // Rayon panics if this is refused too; it makes no thread, so it is not.
        let _ = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global();
    }
    Ok(())
}
