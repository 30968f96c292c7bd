//! Whoever watches a launch: nobody, or several at once.

use ptx_emulator::observe::{Access, Observer, Site, Sync, Words};
use ptx_emulator::profile::Profile;
use ptx_emulator::race::RaceDetector;

/// Those who were asked for.
pub struct Watchers {
    pub races: Option<RaceDetector>,
    pub profile: Option<Profile>,
    /// The profile while the launch is run a second time for the races: that counts for nobody.
    pub counted: Option<Profile>,
}

impl Observer for Watchers {
    fn hears_all(&self) -> bool {
        self.profile.is_some()
    }

    fn repeats(&self) -> bool {
        true
    }

    fn again(&mut self) -> Option<Words> {
        let words = self.races.as_mut().and_then(Observer::again);
        if words.is_some() {
            self.counted = self.profile.take();
        }
        words
    }

    fn outcome(&mut self, is_used: &dyn Fn(u32) -> bool) {
        self.races.iter_mut().for_each(|races| races.outcome(is_used));
        self.profile = self.counted.take();
    }

    fn begin(&mut self, block: [u32; 3], threads: u32) {
        self.races.iter_mut().for_each(|races| races.begin(block, threads));
        self.profile.iter_mut().for_each(|profile| profile.begin(block, threads));
    }

    fn leave(&mut self, block: [u32; 3]) {
        self.races.iter_mut().for_each(|races| races.leave(block));
        self.profile.iter_mut().for_each(|profile| profile.leave(block));
    }

    fn resume(&mut self, block: [u32; 3]) {
        self.races.iter_mut().for_each(|races| races.resume(block));
        self.profile.iter_mut().for_each(|profile| profile.resume(block));
    }

    fn issue(&mut self, site: &Site<'_>) {
        self.races.iter_mut().for_each(|races| races.issue(site));
        self.profile.iter_mut().for_each(|profile| profile.issue(site));
    }

    fn access(&mut self, site: &Site<'_>, access: &Access<'_>) {
        self.races.iter_mut().for_each(|races| races.access(site, access));
        self.profile.iter_mut().for_each(|profile| profile.access(site, access));
    }

    fn sync(&mut self, site: &Site<'_>, event: Sync) {
        self.races.iter_mut().for_each(|races| races.sync(site, event));
        self.profile.iter_mut().for_each(|profile| profile.sync(site, event));
    }
}
