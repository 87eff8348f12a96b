%%% The contexts of the default pool. Each lives and dies by itself.
-module(py_reactor_context_sup).

-behaviour(supervisor).

%% API
-export([start_link/1]).

%% supervisor callbacks
-export([init/1]).

%% Longer than a context takes to give up on a callback that does not return.
-define(SHUTDOWN_MS, 10000).

-spec start_link(Size :: pos_integer()) -> supervisor:startlink_ret().
start_link(Size) ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, Size).

%% @private
-spec init(pos_integer()) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init(Size) ->
    Context = fun(Index) ->
        #{
            id => Index,
            start => {py_reactor_context, start_link, [#{pool_index => Index}]},
            shutdown => ?SHUTDOWN_MS
        }
    end,
    %% One that is killed again and again must not take the others along, nor the application. (The
    %% supervisor counts in whole seconds, so that this may be reached by half as many a second.)
    Flags = #{strategy => one_for_one, intensity => 100 * Size, period => 1},
    {ok, {Flags, [Context(Index) || Index <- lists:seq(1, Size)]}}.
