use super::*;
use serde_json::json;

#[test]
fn a_token_that_ends_a_text_is_named_also_where_there_may_be_no_more() {
    let file = json!({"eos_token_id": [3, 4], "max_new_tokens": 2});
    let config = GenerationConfig::from_json(file.as_object().unwrap(), &serde_json::Map::new()).unwrap();
    let criteria = StoppingCriteria::new(&config, &Lengths::new(&config, 2, None).unwrap());
    assert_eq!(criteria.after(&[3, 4, 7]), None);
    assert_eq!(criteria.after(&[1, 1, 4]), Some(FinishReason::StopToken(4)));
    assert_eq!(criteria.after(&[1, 1, 7, 3]), Some(FinishReason::StopToken(3)));
    assert_eq!(criteria.after(&[1, 1, 7, 7]), Some(FinishReason::Length));
}
