//! The schema of reports, as it is committed, is that of the reports that are written. `DSV2_BLESS=1` writes it anew.

use std::path::Path;

#[test]
fn the_committed_schema_is_that_of_the_reports() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/schema/report.schema.json");
    let schema = format!("{:#}\n", dsv2::report::schema());
    if std::env::var_os("DSV2_BLESS").is_some() {
        std::fs::write(&path, &schema).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(committed == schema, "golden/schema/report.schema.json is out of date: run this test with DSV2_BLESS=1");
}
