//! Reports: the committed schema is theirs, and in report.html is everything, nothing from outside, and a browser shows it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use dsv2::backend::{Precision, Reference};
use dsv2::check::{Conclusion, Request, check};
use dsv2::golden::GoldenCases;
use dsv2::report::html;
use dsv2::report::model::{CheckReport, Files, Report, VerifyReport};
use dsv2::values::Values;
use dsv2::verify::{Plan, verify};
use dsv2::waivers::Waivers;
use dsv2_reference::AttentionForm;
use dsv2_reference::model::cache::CacheFormat;
use libtest_mimic::{Arguments, Failed, Trial};

const O_PROJ: &str = "model.layers.1.self_attn.o_proj";
const HOSTILE: &str = "</style><script>alert('x')</script>\"><img src=x>";

fn main() {
    let arguments = Arguments::from_args();
    let trial = |name: &str, test: fn()| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let mut trials = vec![
        trial("the_committed_schema_is_that_of_the_reports", the_committed_schema_is_that_of_the_reports),
        trial("every_stage_of_a_check_is_there", every_stage_of_a_check_is_there),
        trial("the_first_failure_is_spelled_out", the_first_failure_is_spelled_out),
        trial("a_name_cannot_become_markup", a_name_cannot_become_markup),
        trial("nothing_is_loaded_from_outside", nothing_is_loaded_from_outside),
        trial("every_run_of_a_verification_is_there_in_less_than_2_mb", every_run_of_a_verification_is_there),
    ];
    trials.push(match chromium() {
        Some(chromium) => Trial::test("a_browser_shows_the_verdict", move || a_browser_shows_the_verdict(&chromium)),
        None => Trial::test("a_browser_shows_the_verdict (not run: no Chromium)", || Ok(())).with_ignored_flag(true),
    });
    libtest_mimic::run(&arguments, trials).exit();
}

/// `DSV2_BLESS=1` writes it anew.
fn the_committed_schema_is_that_of_the_reports() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/schema/report.schema.json");
    let schema = format!("{:#}\n", dsv2::report::schema());
    if std::env::var_os("DSV2_BLESS").is_some() {
        std::fs::write(&path, &schema).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(committed == schema, "golden/schema/report.schema.json is out of date: run this test with DSV2_BLESS=1");
}

/// The report of a check of what Transformers computed for a case, after a change.
fn report(case: &str, change: impl Fn(&str, &mut Values), unknown: &str) -> CheckReport {
    let golden = GoldenCases::embedded().load(case).unwrap();
    let changed = golden.expected.iter().map(|(name, values)| {
        let mut values = values.clone();
        change(name, &mut values);
        (name.to_owned(), values)
    });
    let stranger = (unknown.to_owned(), Values::Index(ndarray::ArrayD::zeros(vec![1])));
    let candidate = changed.chain([stranger]).collect();
    let (precision, cache) = (Some(Precision::F32), CacheFormat::Plain);
    let request = Request { precision, cache, ..Request::new(golden.case, candidate) };
    let files = Files { candidate: unknown.to_owned(), ..Files::default() };
    CheckReport::new(&request, &check(&request).unwrap(), files)
}

fn broken(name: &str, values: &mut Values) {
    if let (O_PROJ, Values::Real(_, a)) = (name, values) {
        *a *= 1.01;
    }
}

fn page(report: CheckReport) -> String {
    html(&Report::Check(Box::new(report)))
}

fn every_stage_of_a_check_is_there() {
    let report = report("v2", |_, _| (), "stranger");
    assert_eq!(report.verdict, Conclusion::Pass);
    let stages = report.stages.clone();
    let page = page(report);
    assert!(page.contains("<strong>pass</strong>") && page.contains("stranger"), "{page}");
    for stage in &stages {
        let name = &stage.stage;
        assert!(page.contains(&format!("<code>{name}</code>")), "no row of {name}");
        assert!(page.contains(&format!("title=\"{name}: ")), "no cell of {name}");
    }
    assert_eq!(page.matches("<td class=\"first").count(), 0);
}

fn the_first_failure_is_spelled_out() {
    let page = page(report("v2", broken, "stranger"));
    let (_, after) = page.split_once("The first failure").unwrap();
    let (section, _) = after.split_once("</section>").unwrap();
    for words in
        [O_PROJ, "over budget", "local error", "propagated error", "got ", "model.layers.1.self_attn.attn_output"]
    {
        assert!(section.contains(words), "{words}: {section}");
    }
}

fn a_name_cannot_become_markup() {
    let page = page(report("one-token", |_, _| (), HOSTILE));
    assert!(!page.contains("alert('x')</script>") && !page.contains("<img"), "{page}");
    assert!(
        page.contains("&lt;/style&gt;&lt;script&gt;alert('x')&lt;/script&gt;&quot;&gt;&lt;img src=x&gt;"),
        "{page}"
    );
}

fn nothing_is_loaded_from_outside() {
    let page = page(report("one-token", broken, "stranger")).to_lowercase();
    for loads in ["http:", "https:", "src=", "url(", "@import", "<link", "<iframe", "<object", "href=\"/"] {
        assert!(!page.contains(loads), "{loads}");
    }
    assert_eq!(page.matches("href=").count(), page.matches("href=\"#").count());
}

fn every_run_of_a_verification_is_there() {
    let golden = GoldenCases::embedded();
    let plan = Plan {
        cases: golden.names().to_vec(),
        golden: &golden,
        candidates: vec![(&Reference, Precision::F64), (&Reference, Precision::F32)],
        attention: AttentionForm::Expanded,
        at_a_time: usize::MAX,
        waivers: Waivers::default(),
    };
    let report = VerifyReport::new(&verify(&plan, |_| ()).unwrap());
    let page = html(&Report::Verify(report.clone()));
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    for (at, run) in report.runs.iter().enumerate() {
        assert!(page.contains(&format!("href=\"#r{at}\"")) && page.contains(&format!("id=\"r{at}\"")), "run {at}");
        assert!(page.contains(&format!("<summary>{} {} {} ", run.case, run.backend, run.dtype)), "{}", run.case);
    }
}

/// A Chromium that is there.
fn chromium() -> Option<String> {
    let starts = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|ran| ran.status.success());
    ["chromium", "chromium-browser", "google-chrome"].iter().find(|name| starts(name)).map(|name| (*name).to_owned())
}

/// What is on the page after a browser has read it.
fn seen(chromium: &str, page: &str) -> Result<String, Failed> {
    let room = tempfile::tempdir()?;
    let path = room.path().join("report.html");
    std::fs::write(&path, page)?;
    let argument = |name: &str, value: &Path| {
        let mut argument = OsStr::new(name).to_owned();
        argument.push(value);
        argument
    };
    let quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"];
    let ran = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", "--dump-dom"])
        .args(quiet)
        .arg(argument("--user-data-dir=", &room.path().join("profile")))
        .arg(argument("file://", &path))
        .output()?;
    Ok(String::from_utf8(ran.stdout)?)
}

fn a_browser_shows_the_verdict(chromium: &str) -> Result<(), Failed> {
    let dom = seen(chromium, &page(report("one-token", broken, HOSTILE)))?;
    for part in ["<strong>FAIL</strong>", O_PROJ, "<td class=\"r3 first\"", "id=\"verdict\""] {
        if !dom.contains(part) {
            return Err(format!("{part} is not on the page: {dom}").into());
        }
    }
    if dom.contains("<img") || dom.matches("<script").count() != 1 {
        return Err("a name became markup".into());
    }
    Ok(())
}
