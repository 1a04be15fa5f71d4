// What a dashboard of ours may be, by Grafana's own types: no key that Grafana does not know, no value that it does not take.

import type * as common from '@grafana/schema';
import type * as raw from '@grafana/schema/dist/esm/raw/dashboard/x/Dashboard_types.gen';
import type * as bargauge from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

// JSON has texts where TypeScript has string enums.
type Plain<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;

// The query of the Prometheus data source is no part of the schema.
interface Query {
  refId: string;
  datasource: raw.DataSourceRef;
  editorMode: 'code';
  expr: string;
  legendFormat: string;
  instant: boolean;
  range: boolean;
  format: 'table' | 'time_series';
}

interface PanelOf<Kind extends string, Options, Custom> extends Omit<raw.Panel, 'type' | 'options' | 'fieldConfig' | 'targets'> {
  type: Kind;
  options: Options;
  targets: Query[];
  fieldConfig: { defaults: Omit<raw.FieldConfig, 'custom'> & { custom?: Custom }; overrides: raw.FieldConfigSource['overrides'] };
}

type Panel =
  | PanelOf<'timeseries', timeseries.Options, common.GraphFieldConfig>
  | PanelOf<'stat', stat.Options, never>
  | PanelOf<'bargauge', bargauge.Options, never>
  | PanelOf<'table', common.TableOptions, common.TableFieldOptions>
  | raw.RowPanel;

// As the Prometheus data source reads it.
interface Annotation extends raw.AnnotationQuery {
  expr: string;
  step: string;
  titleFormat: string;
  textFormat: string;
  tagKeys: string;
  useValueForTime: boolean;
}

export type Dashboard = Plain<
  Omit<raw.Dashboard, 'panels' | 'annotations'> & { panels: Panel[]; annotations: { list: Annotation[] } }
>;
