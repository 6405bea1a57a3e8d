//! A bar for each engine, as SVG.

use std::path::Path;

use plotters::prelude::*;

use crate::engine::{Class, Engine, Result};
use crate::report::{number, rows};
use crate::results::Results;
use crate::workload;

const WIDTH: u32 = 760;
const BAR: i32 = 22;
const LEFT: i32 = 200;
const TOP: i32 = 40;

fn colour(class: Class, own: bool) -> RGBColor {
    match class {
        _ if own => RGBColor(0xd6, 0x4b, 0x2a),
        Class::Durable => RGBColor(0x2f, 0x5d, 0x8c),
        Class::Flushed => RGBColor(0x6f, 0x9d, 0xc8),
        Class::Process => RGBColor(0x3b, 0x8f, 0x6b),
        Class::Buffered => RGBColor(0xa6, 0xbf, 0x5a),
        Class::None => RGBColor(0xc9, 0xa2, 0x4a),
        Class::Ceiling => RGBColor(0xaa, 0xaa, 0xaa),
    }
}

/// A chart of each workload in a directory: `bench-NAME.svg`.
pub fn charts(dir: &Path, engines: &[Engine], results: &Results) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    for workload in workload::all() {
        let rows = rows(&workload, engines, results);
        if rows.is_empty() {
            continue;
        }
        let path = dir.join(format!("bench-{}.svg", workload.name));
        let height = TOP as u32 + rows.len() as u32 * BAR as u32 + 12;
        let area = SVGBackend::new(&path, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let style = |size| ("sans-serif", size).into_font().color(&BLACK);
        let better = if workload.more_is_better() { "more is better" } else { "less is better" };
        let title = format!("{}: {}, {better}", workload.name, workload.unit);
        area.draw(&Text::new(title, (10, 12), style(16)))?;
        let most = rows.iter().map(|row| row.cell.max).fold(0.0, f64::max);
        let room = f64::from(WIDTH as i32 - LEFT - 190);
        let x = |value: f64| LEFT + (value / most * room) as i32;
        for (i, row) in rows.iter().enumerate() {
            let top = TOP + i as i32 * BAR;
            let fill = colour(row.class, row.engine == "slotdb").filled();
            area.draw(&Text::new(row.engine.to_string(), (10, top + 3), style(13)))?;
            area.draw(&Rectangle::new([(LEFT, top + 2), (x(row.cell.median).max(LEFT + 1), top + BAR - 5)], fill))?;
            let middle = top + BAR / 2 - 1;
            area.draw(&PathElement::new([(x(row.cell.min), middle), (x(row.cell.max), middle)], BLACK))?;
            let label = format!("{}  {}", number(row.cell.median), row.class.name());
            area.draw(&Text::new(label, (x(row.cell.max) + 6, top + 4), style(12)))?;
        }
        area.present()?;
    }
    Ok(())
}
