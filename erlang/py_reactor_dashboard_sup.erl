%%% The dashboard's processes: its context, the keeper of its figures, its listener. It begins under
%%% the application's supervisor when somebody wants it. Should it fail again and again it is given
%%% up: nothing else depends on it.
-module(py_reactor_dashboard_sup).

-behaviour(supervisor).

%% API
-export([start/1, stop/0, start_link/1, context/0]).

%% supervisor callbacks
-export([init/1]).

-spec start(map()) -> supervisor:startchild_ret() | {error, not_running}.
start(Listener) ->
    Dashboard = #{
        id => ?MODULE,
        start => {?MODULE, start_link, [Listener]},
        type => supervisor,
        shutdown => infinity,
        restart => temporary
    },
    try
        supervisor:start_child(py_reactor_sup, Dashboard)
    catch
        exit:{noproc, _} -> {error, not_running}
    end.

-spec stop() -> ok | {error, not_found}.
stop() ->
    try
        supervisor:terminate_child(py_reactor_sup, ?MODULE)
    catch
        exit:{noproc, _} -> {error, not_found}
    end.

-spec start_link(map()) -> supervisor:startlink_ret().
start_link(Listener) ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, Listener).

%% @doc The name of its context.
-spec context() -> atom().
context() ->
    py_reactor_dashboard_context.

%% @private
-spec init(map()) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init(#{max_connections := MaxConnections} = Listener) ->
    Context = #{name => context(), max_connections => MaxConnections},
    Keeper = #{id => keeper, start => {py_reactor_dashboard, start_link, []}},
    %% None holds on to another's process: the listener knows its context by name.
    {ok, {#{strategy => one_for_one, intensity => 10, period => 10}, [
        py_reactor_context:child_spec(Context),
        Keeper,
        py_reactor:child_spec(py_reactor_dashboard, Listener)
    ]}}.
