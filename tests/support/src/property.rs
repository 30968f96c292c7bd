//! How a property is stated: a law, cases to try it on, an implementation that obeys it, and some that do not.
//!
//! A law that nothing can break says nothing. So each names at least one mutant, a wrong implementation that it must
//! catch, with the same cases.
//!
//! The cases are the same in every run, so that a gate does not open by luck. For others:
//! `PROPTEST_RNG_SEED=7 PROPTEST_CASES=10000 cargo test --test properties`. A case that fails is shrunk, printed, and
//! remembered in `proptest-regressions` beside the laws, to be committed with the fix.

use std::any::Any;
use std::fmt::{self, Debug, Formatter};
use std::panic::Location;

use proptest::strategy::{BoxedStrategy, Strategy};
use proptest::test_runner::{Config, FileFailurePersistence, RngSeed, TestCaseResult, TestError, TestRunner};

/// How many cases, if neither the property nor `PROPTEST_CASES` says so.
const CASES: u32 = 256;

/// A case of any type: proptest's runner is compiled once for all laws, and not for each anew.
struct Case(Box<dyn AnyCase>);

trait AnyCase: Any + Debug {}
impl<T: Any + Debug> AnyCase for T {}

impl Debug for Case {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

type Law<'a, I> = Box<dyn Fn(&I, Case) -> TestCaseResult + 'a>;

/// A law about implementations `I`, and the cases to try it on.
pub struct Property<'a, I: ?Sized> {
    cases: BoxedStrategy<Case>,
    law: Law<'a, I>,
    number: u32,
    stated_in: &'static str,
}

/// States that `law` holds for an implementation in all of `cases`.
#[track_caller]
pub fn for_all<'a, S: Strategy + 'static, I: ?Sized>(
    cases: S,
    law: impl Fn(&I, S::Value) -> TestCaseResult + 'a,
) -> Property<'a, I> {
    let law = move |implementation: &I, Case(case): Case| {
        let case: Box<dyn Any> = case;
        law(implementation, *case.downcast().expect("a case of this law"))
    };
    let cases = cases.prop_map(|case| Case(Box::new(case))).boxed();
    Property { cases, law: Box::new(law), number: CASES, stated_in: Location::caller().file() }
}

impl<I: ?Sized> Property<'_, I> {
    /// Tries so many cases, for laws that take long; `PROPTEST_CASES` comes first.
    pub fn tried(mut self, number: u32) -> Self {
        self.number = number;
        self
    }

    /// Panics with the simplest case in which the law does not hold for `implementation`.
    #[track_caller]
    pub fn holds_for(self, implementation: &I) -> Self {
        let persistence = FileFailurePersistence::SourceParallel("proptest-regressions");
        let config = Config {
            failure_persistence: Some(Box::new(persistence)),
            source_file: Some(self.stated_in),
            ..config(self.number)
        };
        if let Err(error) = self.run(config, implementation) {
            panic!("{error}");
        }
        self
    }

    /// Panics if the law holds in all cases for the wrong implementation `mutant`.
    #[track_caller]
    pub fn fails_for(self, name: &str, mutant: &I) -> Self {
        let config = Config { failure_persistence: None, max_shrink_iters: 0, ..config(self.number) };
        match self.run(config, mutant) {
            Err(TestError::Fail(..)) => self,
            Err(TestError::Abort(reason)) => panic!("no case could be tried on the mutant `{name}`: {reason}"),
            Ok(()) => panic!("this law does not see what is wrong with the mutant `{name}`"),
        }
    }

    fn run(&self, config: Config, implementation: &I) -> Result<(), TestError<Case>> {
        run(config, &self.cases, &|case| (self.law)(implementation, case))
    }
}

fn run(
    config: Config,
    cases: &BoxedStrategy<Case>,
    law: &dyn Fn(Case) -> TestCaseResult,
) -> Result<(), TestError<Case>> {
    TestRunner::new(config).run(cases, law)
}

fn config(number: u32) -> Config {
    let default = Config::default(); // reads the environment
    let is_set = |variable: &str| std::env::var_os(variable).is_some();
    Config {
        cases: if is_set("PROPTEST_CASES") { default.cases } else { number },
        rng_seed: if is_set("PROPTEST_RNG_SEED") { default.rng_seed } else { RngSeed::Fixed(2405_04434) },
        ..default
    }
}

#[cfg(test)]
mod tests {
    use proptest::prop_assert;

    use super::for_all;

    type Map = dyn Fn(u32) -> u32;

    #[test]
    #[should_panic(expected = "this law does not see what is wrong with the mutant `the same`")]
    fn a_law_that_does_not_catch_its_mutant_is_a_failure() {
        for_all(0..100_u32, |double: &Map, x| {
            prop_assert!(double(x) >= x);
            Ok(())
        })
        .fails_for("the same", &|x| x);
    }

    #[test]
    #[should_panic(expected = "minimal failing input: 50")]
    fn a_broken_law_shows_its_simplest_case() {
        let property = for_all(0..100_u32, |bounded: &Map, x| {
            prop_assert!(bounded(x) < 50);
            Ok(())
        });
        // As holds_for does, but without remembering a case that is broken on purpose.
        let error = property.run(super::Config { failure_persistence: None, ..super::config(property.number) }, &|x| x);
        panic!("{}", error.unwrap_err());
    }
}
