//! report.html: one page that needs nothing but itself, to be read in a browser or attached to a build.
//!
//! Names come from files and may hold anything: everything goes through `maud`, which escapes it.

mod check;
mod heat_map;
mod verify;

use maud::{DOCTYPE, Markup, PreEscaped, html as markup};

use super::describe::{check_word, number};
use super::model::Report;

const STYLE: &str = include_str!("html/style.css");

/// Opens the section that a link leads to, in browsers that do not do so by themselves.
const SCRIPT: &str = "addEventListener('hashchange',function f(){var e=document.getElementById(location.hash.slice(1)),\
                      d=e&&e.closest('details');if(d){d.open=true;e.scrollIntoView()}})";

/// What the page may load and do: nothing but what it holds.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// The page.
pub fn html(report: &Report) -> String {
    let page = match report {
        Report::Check(report) => page("dsv2 check", check_word(report.verdict), check::body(report)),
        Report::Verify(report) => page("dsv2 verify", verify::word(report), verify::body(report)),
    };
    page.into_string()
}

fn page(command: &str, word: &str, body: Markup) -> Markup {
    markup! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (command) ": " (word) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { h1 { (command) } }
                main { (body) }
                footer { "Written by dsv2 " (env!("CARGO_PKG_VERSION")) "." }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

/// The verdict on everything, large.
fn banner(passes: bool, word: &str, text: Markup) -> Markup {
    let class = if passes { "banner pass" } else { "banner fail" };
    markup! {
        p #verdict class=(class) { strong { (word) } " " (text) }
    }
}

/// A number that may not be there.
fn optional(x: Option<f64>) -> String {
    x.map_or_else(|| "–".to_owned(), number)
}
