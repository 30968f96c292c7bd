use super::*;

/// Pearson's χ² of how often tokens came, and how many degrees of freedom it has.
fn chi_square(logits: &[f32], draws: u64, choose: impl Fn(u64) -> i64) -> (f64, usize) {
    let mut counts = vec![0.0; logits.len()];
    for step in 0..draws {
        counts[choose(step) as usize] += 1.0;
    }
    let expected = |token| log_probability(logits, token).exp() * draws as f64;
    let possible: Vec<usize> = (0..logits.len()).filter(|token| logits[*token] > f32::NEG_INFINITY).collect();
    assert!(counts.iter().zip(logits).all(|(count, logit)| *count == 0.0 || *logit > f32::NEG_INFINITY));
    (
        possible.iter().map(|token| (counts[*token] - expected(*token)).powi(2) / expected(*token)).sum(),
        possible.len() - 1,
    )
}

const LOGITS: [f32; 10] = [1.0, -0.5, f32::NEG_INFINITY, 2.0, 0.0, 0.3, -2.0, 1.0, f32::NEG_INFINITY, -1.0];

/// χ² with 7 degrees of freedom is above this once in 1000 times.
const RARE: f64 = 24.32;

#[test]
fn tokens_are_drawn_as_often_as_they_are_likely() {
    for sampler in [Sampler::Seeded(0), Sampler::Seeded(1 << 60)] {
        let of_steps = chi_square(&LOGITS, 100_000, |step| sampler.choose(&LOGITS, 3, step).unwrap());
        let of_sequences = chi_square(&LOGITS, 100_000, |sequence| sampler.choose(&LOGITS, sequence, 3).unwrap());
        let of_seeds = chi_square(&LOGITS, 100_000, |seed| Sampler::Seeded(seed).choose(&LOGITS, 3, 3).unwrap());
        for (chi_square, freedom) in [of_steps, of_sequences, of_seeds] {
            assert_eq!(freedom, 7);
            assert!(chi_square < RARE, "{chi_square}");
        }
    }
}

#[test]
fn the_test_of_the_distribution_finds_a_temperature_of_1_05() {
    let warmer = LOGITS.map(|logit| logit / 1.05);
    let (chi_square, _) = chi_square(&LOGITS, 100_000, |step| Sampler::Seeded(0).choose(&warmer, 3, step).unwrap());
    assert!(chi_square > RARE, "{chi_square}");
}

#[test]
fn the_likeliest_token_with_the_lowest_number_is_taken() {
    assert_eq!(Sampler::Greedy.choose(&[0.0, 2.0, 2.0, 1.0], 0, 0).unwrap(), 1);
    assert_eq!(Sampler::Greedy.choose(&[-0.0, 0.0], 0, 0).unwrap(), 0);
    assert_eq!(Sampler::Greedy.choose(&[f32::NEG_INFINITY, f32::INFINITY], 0, 0).unwrap(), 1);
}

#[test]
fn logits_that_say_nothing_are_refused() {
    for sampler in [Sampler::Greedy, Sampler::Seeded(0)] {
        let refused = |logits: &[f32]| sampler.choose(logits, 0, 0).unwrap_err().to_string();
        assert_eq!(refused(&[0.0, f32::NAN]), "logits: expected numbers, found NaN for token 1");
        assert_eq!(refused(&[f32::NEG_INFINITY; 3]), "logits: expected a token that may come, found none");
        assert_eq!(refused(&[]), "logits: expected a token that may come, found none");
    }
    let refused = Sampler::Seeded(0).choose(&[0.0, f32::INFINITY], 0, 0).unwrap_err().to_string();
    assert_eq!(refused, "logits: expected finite ones to draw by, found ∞");
}

#[test]
fn the_likeliest_tokens_come_by_falling_probability_and_rising_number() {
    let logits = [1.0, 3.0, -1.0, 3.0, 2.0];
    let likely = LogProbabilities::new(&logits);
    let order = |n| likely.likeliest(n).into_iter().map(|(token, _)| token).collect::<Vec<_>>();
    assert_eq!([order(0), order(1), order(3)], [vec![], vec![1], vec![1, 3, 4]]);
    assert_eq!(order(9), [1, 3, 4, 0, 2]);
    assert!(likely.likeliest(9).iter().all(|(token, log)| *log == log_probability(&logits, *token)));
    let all: f64 = likely.likeliest(9).iter().map(|(_, log)| log.exp()).sum();
    assert!((all - 1.0).abs() < 1e-12, "{all}");
}
