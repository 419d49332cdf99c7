//! The figures as charts, one SVG file for each: a bar for each contender.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::common::Failure;
use crate::common::report::{Report, short};
use crate::figures::{self, Figure};

const WIDTH: i32 = 720;
const HEAD: i32 = 44;
const ROW: i32 = 26;
/// Where the bars begin, after the names.
const LEFT: i32 = 170;
/// What is kept free for the value behind the longest bar.
const RIGHT: i32 = 110;

const INK: RGBColor = RGBColor(60, 60, 60);
const OURS: RGBColor = RGBColor(200, 80, 30);
const DIRECT: RGBColor = RGBColor(150, 150, 150);
const OTHERS: RGBColor = RGBColor(90, 130, 180);

/// Writes those whose case was measured, with these contenders in this order, and gives the files' names.
pub(crate) fn write(report: &Report, contenders: &[&'static str], dir: &Path) -> Result<Vec<String>, Failure> {
    std::fs::create_dir_all(dir)?;
    let mut files = Vec::new();
    for Figure { case, metric, title, unit, .. } in &figures::ALL {
        let value = |name: &&'static str| Some((*name, report.median(case, name, metric)?));
        let bars: Vec<_> = contenders.iter().filter_map(value).collect();
        if bars.is_empty() {
            continue;
        }
        let name = format!("{}-{}.svg", case.replace('/', "-"), metric.replace([' ', '.'], "-"));
        draw(&dir.join(&name), title, unit, &bars).map_err(|error| format!("cannot draw {name}: {error}"))?;
        files.push(name);
    }
    Ok(files)
}

fn draw(file: &Path, title: &str, unit: &str, bars: &[(&'static str, f64)]) -> Result<(), Failure> {
    let height = HEAD + ROW * i32::try_from(bars.len())? + ROW / 2;
    let area = SVGBackend::new(file, (u32::try_from(WIDTH)?, u32::try_from(height)?)).into_drawing_area();
    let broken = |error: DrawingAreaErrorKind<std::io::Error>| error.to_string();
    area.fill(&WHITE).map_err(broken)?;
    let text = |size: i32, at: HPos| {
        let style = TextStyle::from(("sans-serif", size).into_font()).color(&INK);
        style.pos(Pos::new(at, VPos::Center))
    };
    let title = format!("{title} ({unit})");
    area.draw(&Text::new(title, (12, HEAD / 2), text(20, HPos::Left))).map_err(broken)?;
    let longest = bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let mut top = HEAD;
    for (name, value) in bars {
        let middle = top + ROW / 2;
        let end = LEFT + (value / longest * f64::from(WIDTH - LEFT - RIGHT)).round() as i32;
        let colour = match name {
            name if name.starts_with("dialback") => OURS,
            name if name.starts_with("direct") => DIRECT,
            _ => OTHERS,
        };
        let bar = Rectangle::new([(LEFT, top + 4), (end.max(LEFT + 1), top + ROW - 4)], colour.filled());
        area.draw(&bar).map_err(broken)?;
        area.draw(&Text::new(*name, (LEFT - 8, middle), text(16, HPos::Right))).map_err(broken)?;
        area.draw(&Text::new(short(*value), (end + 6, middle), text(16, HPos::Left))).map_err(broken)?;
        top += ROW;
    }
    area.present().map_err(broken)?;
    Ok(())
}
